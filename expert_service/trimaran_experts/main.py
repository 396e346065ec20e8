"""The expert service's process, from configuration to goodbye."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from trimaran.arena import is_tmpfs, remove_leftovers
from trimaran.channel import ChannelOptions, CurveKeys, Server
from trimaran.config import Config, ExpertsConfig
from trimaran.gguf import GGUFFile
from trimaran.lifecycle import Stop
from trimaran.model_path import resolve_model
from trimaran.run_dir import default_run_dir, experts_endpoint, open_run_dir
from trimaran.spec import read_spec
from trimaran.telemetry import Log
from trimaran.wire import EngineToExperts

from trimaran_experts.loading import LoadingThread
from trimaran_experts.service import ControlServer, ExpertService
from trimaran_experts.shard import open_shard

_log = Log(__name__)


def serve(config: Config, stop: Stop) -> None:
    """Serve the shard that `config` describes until `stop` is requested.

    Raises:
        TrimaranError: the model, the configuration or the endpoint cannot be used.
    """
    with ExitStack() as stack:
        file = stack.enter_context(GGUFFile.open(resolve_model(config.model)))
        shard = open_shard(config.experts, config.precision, file, read_spec(file))
        run_dir = stack.enter_context(open_run_dir(config.run_dir or default_run_dir()))
        _remove_leftovers(run_dir.path)
        server = stack.enter_context(_listen(config.experts, run_dir.path, shard.placement.shard))
        loading = stack.enter_context(closing(LoadingThread(shard.load)))
        service = ExpertService(server, shard.facts, shard.placement, loading)
        stack.callback(service.close)
        service.run(stop)


def _listen(config: ExpertsConfig, run_dir: Path, shard: str) -> ControlServer:
    curve = CurveKeys.load(config.curve_key) if config.curve_key else None
    endpoint = config.listen or experts_endpoint(run_dir, shard)
    return Server(endpoint, EngineToExperts, ChannelOptions(curve=curve))


def _remove_leftovers(run_dir: Path) -> None:
    for directory in (run_dir, Path("/dev/shm")):  # noqa: S108 - where arenas are
        if is_tmpfs(directory):
            for path in remove_leftovers(directory):
                _log.info("removed what a killed process left", path=str(path))
