"""The chosen kernel against a slow float64 reference, on the model's own weights, before it serves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from trimaran.errors import KernelError
from trimaran.gguf.dequant import dequantize
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine

from trimaran_experts.loader import ExpertLayer, ExpertMatrix

FLOAT_TOLERANCE = 1e-3
INT8_TOLERANCE = 3e-2
"""Largest deviations allowed, with float32 and with int8 activations: length of the error, relative to the
length of the result."""

_N_TOKENS = 3
_COPIES = (
    8  # of the tokens, in a second call: what kernels for many tokens need, and no work for the reference
)
_N_EXPERTS = 2  # distinct ones: dequantising an expert of a large model takes a second


def check_engine(
    engine: ExpertEngine, layers: Sequence[ExpertLayer], first_expert: int, tolerance: float
) -> float:
    """Compute a few random tokens of one layer both ways; the relative deviation.

    Raises:
        KernelError: the engine fails, or deviates by more than `tolerance`.
    """
    random = np.random.default_rng(0)
    layer = layers[len(layers) // 2]
    owned = layer.gate.n_experts
    chosen = random.choice(owned, min(_N_EXPERTS, owned), replace=False)
    local = random.choice(chosen, (_N_TOKENS, engine.top_k))
    x = random.standard_normal((_N_TOKENS, engine.hidden)).astype(np.float32)
    weights = random.random((_N_TOKENS, engine.top_k)).astype(np.float32)
    expected = reference(layer, x, local, weights)
    ids = (local + first_expert).astype(np.int32)
    deviations: list[float] = []
    for copies in (1, _COPIES):
        y = _forward(engine, layer.layer, (x, ids, weights), copies)
        error = float(np.linalg.norm(y - np.tile(expected, (copies, 1)))) / copies**0.5
        deviations.append(error / max(float(np.linalg.norm(expected)), 1e-30))
        if not deviations[-1] <= tolerance:
            raise KernelError(
                f"self-check of layer {layer.layer}: the {engine.isa} kernel deviates by {deviations[-1]:.2g}"
            )
    return max(deviations)


def _forward(
    engine: ExpertEngine,
    layer: int,
    call: tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]],
    copies: int,
) -> NDArray[np.float32]:
    """One call with each token `copies` times; call: x, ids, weights."""
    x, ids, weights = call
    x, ids, weights = np.tile(x, (copies, 1)), np.tile(ids, (copies, 1)), np.tile(weights, (copies, 1))
    y = np.empty_like(x)
    status = engine.forward(layer, x, ids, weights, y)
    if status != Status.OK:
        raise KernelError(f"self-check of layer {layer}: the kernel answered status {status}")
    return y


def reference(
    layer: ExpertLayer,
    x: NDArray[np.float32],
    experts: NDArray[np.integer],
    weights: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Σ_j weights[t, j] · down(silu(gate x[t]) · up x[t]) in float64.

    Args:
        x: [n, hidden]. experts, weights: [n, top_k]; experts count from this shard's first.

    Returns:
        [n, hidden].
    """
    y = np.zeros(x.shape, np.float64)
    for expert in np.unique(experts):
        gate, up, down = (_dense(matrix, int(expert)) for matrix in layer.matrices)
        for token, place in np.argwhere(experts == expert):
            h = gate @ x[token]
            y[token] += weights[token, place] * (down @ (h * np.exp(-np.logaddexp(0, -h)) * (up @ x[token])))
    return y


def _dense(matrix: ExpertMatrix, expert: int) -> NDArray[np.float64]:
    return dequantize(matrix.type, matrix.expert(expert), matrix.shape).astype(np.float64)
