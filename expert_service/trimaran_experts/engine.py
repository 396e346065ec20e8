"""Kernels and weights, put together: the engine of one shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trimaran.errors import KernelError
from trimaran.spec import ModelSpec
from trimaran.telemetry import Log
from trimaran_kernels import ExpertEngine, ThreadPool, built_isas, explain_isa
from trimaran_kernels.hop import CallGate

from trimaran_experts.loader import ExpertLayer
from trimaran_experts.placement import Placement
from trimaran_experts.self_check import FLOAT_TOLERANCE, INT8_TOLERANCE, check_engine
from trimaran_experts.weights import Stored, StoredLayer, Weights

_log = Log(__name__)


@dataclass(frozen=True)
class ShardEngine:
    """A shard that can compute.

    Attributes:
        gate: the checked way in; several threads may use it.
        isa: instruction set of the kernels. cpus: where the threads run.
        weights: what it computes from, held for its life.
    """

    gate: CallGate
    isa: str
    cpus: tuple[int, ...]
    weights: Weights


class OtherWeightsError(KernelError):
    """The kernel was refused, and the next one, `isa`, cannot compute from these weights."""

    def __init__(self, message: str, isa: str) -> None:
        super().__init__(message)
        self.isa = isa


def build_engine(
    spec: ModelSpec,
    placement: Placement,
    layers: Sequence[ExpertLayer],
    weights: Weights,
    *,
    pool: ThreadPool,
    isa: str,
    exact: bool,
) -> ShardEngine:
    """An engine over `weights` with the best kernel up to `isa` that passes the self-check against `layers`.

    Args:
        exact: packed weights are multiplied exactly; only the best kernels can.

    Raises:
        OtherWeightsError: the next kernel to try needs other weights.
        KernelError: even the last kernel of the table is refused.
    """
    _log.info("kernels", chosen=explain_isa(isa))
    packed = any(matrix.packed for matrix in _matrices(weights))
    tolerance = INT8_TOLERANCE if packed and not exact else FLOAT_TOLERANCE
    while True:
        engine = _assemble(pool, spec, placement, weights.layers, isa, exact=exact)
        try:
            deviation = check_engine(engine, layers, placement.first_expert, tolerance)
        except KernelError as error:
            next_isa = _next_after(engine.isa)
            if next_isa is None:
                raise
            _log.error("kernel refused, taking the next one", isa=engine.isa, reason=str(error))
            if exact and packed:
                raise OtherWeightsError(str(error), next_isa) from error
            isa = next_isa
            continue
        _log.info("kernel checked", isa=engine.isa, deviation=deviation)
        return ShardEngine(CallGate(engine), engine.isa, placement.cpus, weights)


def _matrices(weights: Weights) -> Iterator[Stored]:
    for layer in weights.layers:
        yield from (layer.gate, layer.up, layer.down)


def _next_after(isa: str) -> str | None:
    """The next best instruction set of the table."""
    table = built_isas()
    place = table.index(isa) + 1
    return table[place] if place < len(table) else None


def _assemble(
    pool: ThreadPool,
    spec: ModelSpec,
    placement: Placement,
    layers: Sequence[StoredLayer],
    isa: str,
    *,
    exact: bool,
) -> ExpertEngine:
    moe = spec.moe
    engine = ExpertEngine(
        pool, spec.hidden_size, placement.n_columns, moe.n_experts, moe.top_k, isa=isa, exact=exact
    )
    for layer in layers:
        gate, up, down = (
            (matrix.type, matrix.data, matrix.packed) for matrix in (layer.gate, layer.up, layer.down)
        )
        engine.add_layer(layer.layer, gate, up, down, placement.first_expert, placement.n_experts)
    return engine
