"""What every route needs, made once per process and handed to the app: no globals."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

from starlette.requests import Request
from trimaran.config import GatewayConfig

from trimaran_gateway.crashes import CrashCollector, ReadCrashes
from trimaran_gateway.engine.collector import PREFIX
from trimaran_gateway.engine.interface import Engine
from trimaran_gateway.errors import ApiError
from trimaran_gateway.generation import Generator, prompt_too_long
from trimaran_gateway.metrics import GatewayMetrics
from trimaran_gateway.model import ServedModel
from trimaran_gateway.text.tokenizer import TooManyTokensError

KEEPALIVE_S = 5.0
_LARGE_CHARS = 4096
_HUGE_CHARS = 1 << 20

T = TypeVar("T")


@dataclass
class Gateway:
    """The parts of a running gateway.

    Attributes:
        is_draining: no new requests; what runs may finish.
        keepalive_s: a stream that is silent for so long gets a comment line.
        crashes: tells how the server's services have fared.
    """

    config: GatewayConfig
    model: ServedModel
    engine: Engine
    metrics: GatewayMetrics
    keepalive_s: float = KEEPALIVE_S
    crashes: ReadCrashes = dict
    is_draining: bool = False
    generator: Generator = field(init=False)
    _huge: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __post_init__(self) -> None:
        self.metrics.registry.register(CrashCollector(PREFIX, self.crashes))
        self.generator = Generator(self.engine, self.model, self.metrics, self.config.request_timeout_s)

    def require_model(self, name: str | None) -> None:
        """Refuse requests for a model that is not served here; no name means the one that is."""
        if name is not None and not self.model.answers_to(name):
            raise ApiError(
                404,
                f"the model {name!r:.100} does not exist; this server has {self.model.name!r}",
                code="model_not_found",
                param="model",
            )

    async def off_loop(self, work: Callable[[], T], size: int) -> T:
        """Run `work` over a text of `size` characters: in a thread if it is long, so that streams go on.

        Huge texts take their turns, for each needs many times its own size of memory.
        """
        if size <= _LARGE_CHARS:
            return work()
        async with self._huge if size > _HUGE_CHARS else contextlib.nullcontext():
            return await asyncio.to_thread(work)

    async def encode_prompt(self, work: Callable[[int], T], size: int, param: str) -> T:
        """Run `work` over a prompt as `off_loop` does, telling it how many tokens the context holds.

        Raises:
            RequestError: they are more; `param` is the prompt's.
        """
        most = self.generator.context_length
        try:
            return await self.off_loop(lambda: work(most), size)
        except TooManyTokensError as error:
            raise prompt_too_long(most, str(error), param) from None


def gateway_of(request: Request) -> Gateway:
    """The gateway that a request arrived at; a FastAPI dependency."""
    return cast(Gateway, request.app.state.gateway)
