"""A whole model with the GPU's matrices, in Triton's interpreter, against the CPU's."""

from __future__ import annotations

import interpreted
import numpy as np
import pytest
import torch
from trimaran.synth import write_random_model
from trimaran.wire import SamplingParams
from trimaran_attn.model.linear import SwiGLU, swiglu
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_kernels.gpu import gemm, gemv

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="kernels are compiled here: `make gpu-check`")


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by them."""
    monkeypatch.setattr(gemv, "rows_per_program", lambda _: 512)
    monkeypatch.setattr(gemm, "choose_tile", lambda _: gemm.Tile(rows=512, tokens=16, codes=128, warps=4))


def plan_of(n_tokens: int) -> StepPlan:
    ids = np.random.default_rng(1).integers(0, 280, n_tokens).tolist()
    return StepPlan((Chunk(Request("r", ids, SamplingParams(), max_tokens=8, pages=[1]), 0, n_tokens),))


@pytest.mark.parametrize(("mix", "n_tokens"), [("Q4_K_M", 12), ("Q5_0", 1)])
def test_logits_are_the_cpus(tmp_path, build_lab, mix, n_tokens):
    path = write_random_model(tmp_path / "m.gguf", "v3", mix=mix, tokenizer=False)
    logits = []
    for linears in ("quantised", "gpu"):
        lab = build_lab(path, linears=linears)
        with np.errstate(all="ignore"):
            logits.append(lab.model.forward(make_batch(plan_of(n_tokens), CPU), lab.cache).logits)
    cpu, gpu = logits
    assert float((gpu - cpu).norm() / cpu.norm()) < 1e-4


def test_matrices_that_cannot_fuse_are_multiplied_one_after_the_other():
    double, triple = (lambda x: 2 * x), (lambda x: 3 * x)
    both = swiglu(double, triple)
    assert isinstance(both, SwiGLU)
    x = torch.randn(2, 3)
    torch.testing.assert_close(both(x), torch.nn.functional.silu(2 * x) * 3 * x)
