"""One shard: what the configuration makes of model and machine, and how it becomes an engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
from trimaran.config import ExpertsConfig, Precision
from trimaran.errors import ConfigError
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.machine import Machine, parse_cpu_list, read_machine
from trimaran.spec import ModelSpec
from trimaran.telemetry import Log
from trimaran_kernels import ThreadPool, usable_cpus

from trimaran_experts.clients import ModelFacts
from trimaran_experts.engine import OtherWeightsError, ShardEngine, build_engine
from trimaran_experts.kernel_packing import kernel_packing
from trimaran_experts.loader import ExpertLayer, find_experts
from trimaran_experts.numa import Seat, room_on, seat, split_experts
from trimaran_experts.placement import WHOLE_MODEL, Placement, place
from trimaran_experts.progress import OnProgress
from trimaran_experts.store.catalog import remove_unused
from trimaran_experts.store.manifest import Identity, Source
from trimaran_experts.weights import Packing, Task, Weights, obtain

_log = Log(__name__)


@dataclass(frozen=True)
class Shard:
    """A shard before its weights are there.

    Attributes:
        facts: what a client must agree with. layers: its experts in the file. packing: of its weights.
        identity: theirs.
    """

    config: ExpertsConfig
    precision: Precision
    spec: ModelSpec
    placement: Placement
    seat: Seat
    facts: ModelFacts
    layers: list[ExpertLayer]
    packing: Packing
    identity: Identity

    def load(self, on_progress: OnProgress, stopped: Callable[[], bool]) -> ShardEngine | None:
        """Bring the weights into memory and check the kernels; None if told to stop."""
        pool = ThreadPool(self.placement.cpus)
        weights = obtain(self._task(pool, on_progress, stopped))
        if weights is None:
            return None
        try:
            return self._build(pool, weights)
        except OtherWeightsError as error:
            isa = error.isa
        kept = None if weights.segment is None else weights.segment.path
        del weights  # the error, whose frames held them too, is gone already
        if kept is not None:
            remove_unused(kept)
        return self._capped(isa).load(on_progress, stopped)

    def _room(self) -> int:
        machine = read_machine(with_gpus=False)
        return room_on(self.seat, machine.nodes, machine.memory.available)

    def _task(self, pool: ThreadPool, on_progress: OnProgress, stopped: Callable[[], bool]) -> Task:
        return Task(
            config=self.config,
            layers=self.layers,
            identity=self.identity,
            packing=self.packing,
            pool=pool,
            seat=self.seat,
            ram_available=self._room(),
            on_progress=on_progress,
            stopped=stopped,
        )

    def _build(self, pool: ThreadPool, weights: Weights) -> ShardEngine:
        return build_engine(
            self.spec,
            self.placement,
            self.layers,
            weights,
            pool=pool,
            isa=self.config.isa,
            exact=self.precision == "exact",
        )

    def _capped(self, isa: str) -> Shard:
        """The same shard, computed by `isa` at best, from weights as that needs them."""
        packing = kernel_packing(self.precision, isa)
        return replace(
            self,
            config=msgspec.structs.replace(self.config, isa=isa),
            packing=packing,
            identity=msgspec.structs.replace(self.identity, packing=packing.version_of(self.layers)),
        )


def open_shard(config: ExpertsConfig, precision: Precision, file: GGUFFile, spec: ModelSpec) -> Shard:
    """The shard that `config` asks for.

    Raises:
        ConfigError: a range, CPU or node that is not there. ModelFileError: the file has no such experts.
    """
    machine = read_machine(with_gpus=False)
    here, cpus = _seat(config, machine)
    placement = place(config, spec.moe.n_experts, spec.moe.intermediate_size, cpus)
    if placement.shard == WHOLE_MODEL:
        _advise(machine, here, spec.moe.n_experts)
    facts = _facts(file, spec)
    layers, packing = find_experts(file, spec, placement), kernel_packing(precision, config.isa)
    return Shard(
        config=config,
        precision=precision,
        spec=spec,
        placement=placement,
        seat=here,
        facts=facts,
        layers=layers,
        packing=packing,
        identity=_identity(file, facts, spec.name, packing.version_of(layers), placement),
    )


def _seat(config: ExpertsConfig, machine: Machine) -> tuple[Seat, list[int]]:
    """The seat, and the CPUs on it: those that are named, or one of each core."""
    allowed = os.sched_getaffinity(0)
    if config.cpus != "auto":
        named = parse_cpu_list(config.cpus)
        missing = sorted(set(named) - allowed)
        if missing:
            raise ConfigError(
                f"experts.cpus is {config.cpus}, but this process may not use CPU {missing[0]}",
                remedy=f"it may use {', '.join(map(str, sorted(allowed)))}",
            )
        allowed = set(named)
    here = seat(machine.nodes, allowed, config.node)
    if config.cpus != "auto":
        return here, list(here.cpus)[: config.threads]
    return here, usable_cpus(config.threads, among=here.cpus)


def _advise(machine: Machine, here: Seat, n_experts: int) -> None:
    """On several nodes one process reads half of its weights from afar: say how to start one per node."""
    ranges = split_experts(machine.nodes, here.cpus, n_experts)
    if here.policy != "interleave" or len(ranges) < 2:
        return
    commands = [
        f"--set experts.node={node} --set experts.experts={first}-{end - 1}"
        for node, (first, end) in ranges.items()
    ]
    _log.info("weights are spread over NUMA nodes; one service per node is faster", start="; ".join(commands))


def _identity(file: GGUFFile, facts: ModelFacts, name: str, packing: int, placement: Placement) -> Identity:
    states = [path.stat() for path in file.paths]
    return Identity(
        fingerprint=facts.fingerprint,
        packing=packing,
        shard=placement.shard,
        experts=placement.experts,
        columns=placement.columns,
        sources=tuple(Source(state.st_size, state.st_mtime_ns) for state in states),
        model=name,
    )


def _facts(file: GGUFFile, spec: ModelSpec) -> ModelFacts:
    return ModelFacts(
        fingerprint=fingerprint(file, spec),
        hidden_size=spec.hidden_size,
        top_k=spec.moe.top_k,
        n_experts=spec.moe.n_experts,
        n_columns=spec.moe.intermediate_size,
        layers=tuple(range(spec.n_dense_layers, spec.n_layers)),
    )
