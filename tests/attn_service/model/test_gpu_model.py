"""A whole model with the GPU's matrices, in Triton's interpreter, against the CPU's."""

from __future__ import annotations

from dataclasses import replace

import interpreted
import numpy as np
import pytest
import torch
from trimaran.synth import random_spec, write_random_model
from trimaran.wire import SamplingParams
from trimaran_attn.model.gpu_attention import fits_kernels
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


def plan_of(request: Request, start: int, length: int) -> StepPlan:
    return StepPlan((Chunk(request, start, length),))


@pytest.mark.parametrize(
    ("mix", "options"), [("Q4_K_M", {"mla": "naive"}), ("Q5_0", {"mla": "absorbed", "kv": "fp8"})]
)
def test_logits_are_the_cpus(tmp_path, build_lab, mix, options):
    """A prompt, then one token."""
    path = write_random_model(tmp_path / "m.gguf", "v3", mix=mix, tokenizer=False)
    ids = np.random.default_rng(1).integers(0, 280, 6).tolist()
    results = []
    for modules in ({}, {"linears": "gpu", "native": False}):
        lab = build_lab(path, **options, **modules)
        request = Request("r", ids, SamplingParams(), max_tokens=8, pages=[1])
        with np.errstate(all="ignore"):
            steps = [
                lab.model.forward(make_batch(plan_of(request, *chunk), CPU), lab.cache)
                for chunk in ((0, 5), (5, 1))
            ]
        results.append(torch.cat([step.logits for step in steps]))
    cpu, gpu = results
    assert cpu.shape[0] > 0
    assert float((gpu - cpu).norm() / cpu.norm()) < (1e-2 if "kv" in options else 1e-4)


@pytest.mark.parametrize(
    ("change", "fits"), [({}, True), ({"v_head_dim": 48}, False), ({"qk_rope_head_dim": 8}, False)]
)
def test_other_dimensions_take_the_reference(change, fits):
    assert fits_kernels(replace(random_spec("v3"), **change)) == fits


def test_matrices_that_cannot_fuse_are_multiplied_one_after_the_other():
    double, triple = (lambda x: 2 * x), (lambda x: 3 * x)
    both = swiglu(double, triple)
    assert isinstance(both, SwiGLU)
    x = torch.randn(2, 3)
    torch.testing.assert_close(both(x), torch.nn.functional.silu(2 * x) * 3 * x)
