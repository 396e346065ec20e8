"""Runs the gateway: loads the model's tokeniser, listens, says so, and ends gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import uvicorn
from trimaran.config import Config
from trimaran.crashes import CrashFile
from trimaran.errors import ConfigError
from trimaran.lifecycle import Stop
from trimaran.model_path import resolve_model
from trimaran.replicas import replicas
from trimaran.run_dir import attn_endpoint, default_run_dir
from trimaran.telemetry import Log

from trimaran_gateway.app import create_app
from trimaran_gateway.context import Gateway
from trimaran_gateway.engine.client import EngineClient
from trimaran_gateway.engine.interface import Engine
from trimaran_gateway.engine.pool import EnginePool
from trimaran_gateway.metrics import GatewayMetrics
from trimaran_gateway.middleware import MAX_HEADER_BYTES
from trimaran_gateway.model import load_model
from trimaran_gateway.punctual import PunctualProtocol

_LISTEN_BACKLOG = 1024
_log = Log(__name__)


def serve(config: Config, stop: Stop) -> None:
    """Serve until `stop` is requested; running answers then get `gateway.drain_s` seconds to finish.

    Raises:
        ConfigError: the address cannot be listened on.
        ModelFileError: the model file, its tokeniser or its template cannot be used.
    """
    model = load_model(resolve_model(config.model), config.model_name)
    with listen(config.gateway.host, config.gateway.port) as listener:
        run_dir = config.run_dir or default_run_dir()
        engine = EnginePool([EngineClient(attn_endpoint(run_dir, number)) for number in replicas(config)])
        crashes = CrashFile(run_dir).read
        gateway = Gateway(config.gateway, model, engine, GatewayMetrics(), crashes=crashes)
        asyncio.run(run_gateway(gateway, listener, stop))


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: the address is not ours, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"gateway: cannot listen on {host}:{port}: {error.strerror}",
            remedy="choose another gateway.host or gateway.port",
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Where clients on this machine find a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `Stop` decides when it ends, after draining."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals alone."""
        yield


async def run_gateway(gateway: Gateway, listener: socket.socket, stop: Stop) -> None:
    """Serve on `listener` until `stop` is requested, then drain."""
    server = _Server(
        uvicorn.Config(
            create_app(gateway),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            http=PunctualProtocol,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=2,
        )
    )
    async with running_engine(gateway.engine):
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stopping = asyncio.create_task(stop_requested(stop))
        _log.info(f"ready {url_of(listener)}", model=gateway.model.name)
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await drain(gateway)
        await gateway.engine.give_up("the server is shutting down")
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def running_engine(engine: Engine) -> AsyncIterator[None]:
    """The engine client, started, and closed at the end."""
    await engine.start()
    try:
        yield
    finally:
        await engine.close()


async def stop_requested(stop: Stop) -> None:
    """Wait for the stop signal without a thread."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(stop.fileno(), event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(stop.fileno())


async def drain(gateway: Gateway) -> None:
    """Take no new requests, and wait for the running ones as long as the configuration says."""
    gateway.is_draining = True
    if gateway.engine.in_flight:
        _log.info("draining", running=gateway.engine.in_flight)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(gateway.config.drain_s):
            while gateway.engine.in_flight:
                await asyncio.sleep(0.05)
