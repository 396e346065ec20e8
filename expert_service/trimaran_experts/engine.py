"""Kernels and weights, put together: the engine of one shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimaran.errors import KernelError
from trimaran.spec import ModelSpec
from trimaran.telemetry import Log
from trimaran_kernels import ExpertEngine, ThreadPool
from trimaran_kernels.hop import CallGate

from trimaran_experts.loader import ExpertLayer
from trimaran_experts.placement import Placement
from trimaran_experts.self_check import check_engine

_FALLBACK = "generic"
_log = Log(__name__)


@dataclass(frozen=True)
class ShardEngine:
    """A shard that can compute.

    Attributes:
        gate: the checked way in; several threads may use it, calls run one after another.
        isa: instruction set of the kernels. cpus: where the threads run.
    """

    gate: CallGate
    isa: str
    cpus: tuple[int, ...]


def build_engine(
    spec: ModelSpec, placement: Placement, layers: Sequence[ExpertLayer], isa: str
) -> ShardEngine:
    """An engine over `layers` whose kernel passed the self-check; the generic one if the first choice fails.

    Raises:
        KernelError: even the generic kernel is refused.
    """
    pool = ThreadPool(placement.cpus)
    engine = _assemble(pool, spec, placement, layers, isa)
    try:
        deviation = check_engine(engine, layers, placement.first_expert)
    except KernelError as error:
        if engine.isa == _FALLBACK:
            raise
        _log.error("kernel refused, taking the generic one", reason=str(error))
        engine = _assemble(pool, spec, placement, layers, _FALLBACK)
        deviation = check_engine(engine, layers, placement.first_expert)
    _log.info("kernel checked", isa=engine.isa, deviation=deviation)
    return ShardEngine(CallGate(engine), engine.isa, placement.cpus)


def _assemble(
    pool: ThreadPool, spec: ModelSpec, placement: Placement, layers: Sequence[ExpertLayer], isa: str
) -> ExpertEngine:
    moe = spec.moe
    engine = ExpertEngine(pool, spec.hidden_size, moe.intermediate_size, moe.n_experts, moe.top_k, isa=isa)
    for layer in layers:
        gate, up, down = ((int(matrix.type), matrix.raw) for matrix in layer.matrices)
        engine.add_layer(layer.layer, gate, up, down, placement.first_expert, placement.n_experts)
    return engine
