"""The expert service's process, from configuration to goodbye."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

from trimaran.arena import is_tmpfs, remove_leftovers
from trimaran.channel import ChannelOptions, CurveKeys, Server
from trimaran.config import Config, ExpertsConfig
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.lifecycle import Stop
from trimaran.model_path import resolve_model
from trimaran.run_dir import default_run_dir, experts_endpoint, open_run_dir
from trimaran.spec import ModelSpec, read_spec
from trimaran.telemetry import Log
from trimaran.wire import EngineToExperts
from trimaran_kernels import usable_cpus

from trimaran_experts.clients import ModelFacts
from trimaran_experts.engine import ShardEngine, build_engine
from trimaran_experts.loader import OnProgress, Stopped, find_experts, read_into_memory
from trimaran_experts.loading import Load, LoadingThread
from trimaran_experts.placement import Placement, place
from trimaran_experts.service import ControlServer, ExpertService

_log = Log(__name__)


def serve(config: Config, stop: Stop) -> None:
    """Serve the shard that `config` describes until `stop` is requested.

    Raises:
        TrimaranError: the model, the configuration or the endpoint cannot be used.
    """
    with ExitStack() as stack:
        file = stack.enter_context(GGUFFile.open(resolve_model(config.model)))
        spec = read_spec(file)
        placement = place(config.experts, spec.moe.n_experts, usable_cpus(config.experts.threads))
        run_dir = stack.enter_context(open_run_dir(config.run_dir or default_run_dir()))
        _remove_leftovers(run_dir.path)
        server = stack.enter_context(_listen(config.experts, run_dir.path, placement.shard))
        load = _loader(file, spec, placement, config.experts.isa)
        loading = stack.enter_context(closing(LoadingThread(load)))
        service = ExpertService(server, _facts(file, spec), placement, loading)
        stack.callback(service.close)
        service.run(stop)


def _loader(file: GGUFFile, spec: ModelSpec, placement: Placement, isa: str) -> Load:
    layers = find_experts(file, spec, placement)

    def load(on_progress: OnProgress, stopped: Stopped) -> ShardEngine:
        read_into_memory(layers, on_progress, stopped)
        return build_engine(spec, placement, layers, isa)

    return load


def _facts(file: GGUFFile, spec: ModelSpec) -> ModelFacts:
    return ModelFacts(
        fingerprint=fingerprint(file, spec),
        hidden_size=spec.hidden_size,
        top_k=spec.moe.top_k,
        n_experts=spec.moe.n_experts,
        layers=tuple(range(spec.n_dense_layers, spec.n_layers)),
    )


def _listen(config: ExpertsConfig, run_dir: Path, shard: str) -> ControlServer:
    curve = CurveKeys.load(config.curve_key) if config.curve_key else None
    endpoint = config.listen or experts_endpoint(run_dir, shard)
    return Server(endpoint, EngineToExperts, ChannelOptions(curve=curve))


def _remove_leftovers(run_dir: Path) -> None:
    for directory in (run_dir, Path("/dev/shm")):  # noqa: S108 - where arenas are
        if is_tmpfs(directory):
            for path in remove_leftovers(directory):
                _log.info("removed what a killed process left", path=str(path))
