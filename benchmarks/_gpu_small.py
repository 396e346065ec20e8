"""The kernels between a step's matrices, at DeepSeek-V3's sizes: norms, the queries' rotation, the gate."""

from __future__ import annotations

import torch
from _gpu_bench import Bench
from _gpu_inputs import poison, random_tokens
from torch import Tensor
from torch.nn.functional import rms_norm as torch_rms_norm
from trimaran.spec import MoeSpec
from trimaran_attn.model.gate import Gate
from trimaran_attn.model.gpu_small import GpuGate
from trimaran_attn.model.rope import rotate
from trimaran_kernels.gpu.norm import add_rms_norm, rms_norm
from trimaran_kernels.gpu.rope import rotate_pairs

V3 = MoeSpec(256, 8, 2048, 1, "sigmoid", True, 2.5, 8, 4, "top2")
V2 = MoeSpec(160, 6, 1536, 2, "softmax", False, 16.0, 8, 3, "max")
EPS = 1e-6
HIDDEN = 7168
LIMITS = {torch.bfloat16: 8e-3, torch.float32: 1e-5}


def check_small(bench: Bench) -> None:
    """Each against torch; one token, some, many."""
    hidden, heads, batches = (96, 3, (1, 3)) if bench.tiny else (HIDDEN, 128, (1, 7, 512))
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    for n in batches:
        with bench.part(f"small norms {n}"):
            _check_norms(bench, n, hidden, dtype)
        with bench.part(f"small rotate {n}"):
            _check_rotation(bench, n, heads, dtype)
        x = random_tokens(n, hidden, bench.device, dtype)
        for name, spec in (("V3", V3), ("V2", V2)):
            with bench.part(f"small gate {name} {n}"):
                _check_gate(bench, name, spec, x)


def measure_small(bench: Bench) -> None:
    """One token's launches; their floor is their bytes'."""
    device, dtype = bench.device, torch.bfloat16
    x, delta = (random_tokens(1, HIDDEN, device, dtype) for _ in range(2))
    weight = torch.rand(HIDDEN, device=device)
    bench.time("add and norm, 1 token", lambda: add_rms_norm(x, delta, weight, EPS), nbytes=HIDDEN * 12)
    queries, angles = (
        random_tokens(128, 192, device, dtype).view(1, 128, 192),
        torch.rand(1, 32, device=device),
    )
    bench.time(
        "rotate queries, 1 token",
        lambda: rotate_pairs(queries[..., 128:], angles, angles),
        nbytes=2 * 128 * 64 * 2,
    )
    router, bias = torch.randn(256, HIDDEN, device=device) / HIDDEN**0.5, torch.randn(256, device=device)
    gate = GpuGate(V3, router, bias)
    bench.time("gate, 1 token", lambda: gate(x), nbytes=router.nbytes)


def _check_norms(bench: Bench, n: int, hidden: int, dtype: torch.dtype) -> None:
    x, delta = (random_tokens(n, hidden, bench.device, dtype) for _ in range(2))
    weight = torch.rand(hidden, device=bench.device) + 0.5
    poison(x.nbytes, bench.device)
    expected = torch_rms_norm(x.float(), (hidden,), weight, EPS)
    bench.check(f"small norm {n}", _error(rms_norm(x, weight, EPS), expected), LIMITS[dtype])
    total, normed = add_rms_norm(x, delta, weight, EPS)
    expected = torch_rms_norm((x + delta).float(), (hidden,), weight, EPS)
    bench.check(f"small sum {n}", _error(total, x + delta), 0.0)
    bench.check(f"small norm of sum {n}", _error(normed, expected), LIMITS[dtype])


def _check_rotation(bench: Bench, n: int, heads: int, dtype: torch.dtype) -> None:
    queries = random_tokens(n * heads, 192, bench.device, dtype).view(n, heads, 192)[..., 128:]
    angles = torch.rand(n, 32, device=bench.device)
    expected = rotate(queries, angles.cos(), angles.sin())
    got = rotate_pairs(queries, angles.cos(), angles.sin())
    bench.check(f"small rotate {n}", _error(got, expected), LIMITS[dtype])


def _check_gate(bench: Bench, name: str, spec: MoeSpec, x: Tensor) -> None:
    """Against the reference on logits summed in float64; in many tokens a near tie may turn on rounding."""
    n, hidden = x.shape
    router = torch.randn(spec.n_experts, hidden, device=bench.device) / hidden**0.5
    bias = torch.randn(spec.n_experts, device=bench.device) if spec is V3 else None
    ids, weights = GpuGate(spec, router, bias)(x)
    expected_ids, expected = _gate_in_double(spec, router, bias, x)
    same = (ids == expected_ids).all(1)
    bench.check(
        f"small gate {name} {n}, other choices", float((~same).float().mean()), 0.01 if n > 100 else 0
    )
    bench.check(f"small gate {name} {n}", _error(weights[same], expected[same]), 1e-5)


def _gate_in_double(spec: MoeSpec, router: Tensor, bias: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's own rules on logits that are exact."""
    logits = (x.double() @ router.double().T).float()
    unit = torch.eye(spec.n_experts, device=x.device)
    return Gate(spec, unit, bias)(logits)


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())
