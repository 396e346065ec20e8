"""The expert service's process, from configuration to goodbye."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from trimaran.arena import is_tmpfs, remove_leftovers
from trimaran.channel import ChannelOptions, CurveKeys, Server
from trimaran.config import Config, ExpertsConfig
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.lifecycle import Stop
from trimaran.machine import read_machine
from trimaran.model_path import resolve_model
from trimaran.run_dir import default_run_dir, experts_endpoint, open_run_dir
from trimaran.spec import ModelSpec, read_spec
from trimaran.telemetry import Log
from trimaran.wire import EngineToExperts
from trimaran_kernels import ThreadPool, usable_cpus

from trimaran_experts.clients import ModelFacts
from trimaran_experts.engine import ShardEngine, build_engine
from trimaran_experts.kernel_packing import kernel_packing
from trimaran_experts.loader import find_experts
from trimaran_experts.loading import Load, LoadingThread
from trimaran_experts.placement import Placement, place
from trimaran_experts.progress import OnProgress
from trimaran_experts.service import ControlServer, ExpertService
from trimaran_experts.store.manifest import Identity, Source
from trimaran_experts.weights import Task, obtain

_log = Log(__name__)


def serve(config: Config, stop: Stop) -> None:
    """Serve the shard that `config` describes until `stop` is requested.

    Raises:
        TrimaranError: the model, the configuration or the endpoint cannot be used.
    """
    with ExitStack() as stack:
        file = stack.enter_context(GGUFFile.open(resolve_model(config.model)))
        spec = read_spec(file)
        cpus = usable_cpus(config.experts.threads)
        placement = place(config.experts, spec.moe.n_experts, spec.moe.intermediate_size, cpus)
        run_dir = stack.enter_context(open_run_dir(config.run_dir or default_run_dir()))
        _remove_leftovers(run_dir.path)
        server = stack.enter_context(_listen(config.experts, run_dir.path, placement.shard))
        facts = _facts(file, spec)
        load = _loader(file, spec, placement, config.experts, facts.fingerprint)
        loading = stack.enter_context(closing(LoadingThread(load)))
        service = ExpertService(server, facts, placement, loading)
        stack.callback(service.close)
        service.run(stop)


def _loader(
    file: GGUFFile, spec: ModelSpec, placement: Placement, config: ExpertsConfig, fingerprint_text: str
) -> Load:
    layers = find_experts(file, spec, placement)
    identity = _identity(file, spec, placement, fingerprint_text)

    def load(on_progress: OnProgress, stopped: Callable[[], bool]) -> ShardEngine | None:
        pool = ThreadPool(placement.cpus)
        available = read_machine(with_gpus=False).memory.available
        packing = kernel_packing()
        weights = obtain(Task(config, layers, identity, packing, pool, (), available, on_progress, stopped))
        if weights is None:
            return None
        return build_engine(spec, placement, layers, weights, pool=pool, isa=config.isa)

    return load


def _identity(file: GGUFFile, spec: ModelSpec, placement: Placement, fingerprint_text: str) -> Identity:
    states = [path.stat() for path in file.paths]
    return Identity(
        fingerprint=fingerprint_text,
        packing=kernel_packing().version,
        shard=placement.shard,
        experts=placement.experts,
        columns=placement.columns,
        sources=tuple(Source(state.st_size, state.st_mtime_ns) for state in states),
        model=spec.name,
    )


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
