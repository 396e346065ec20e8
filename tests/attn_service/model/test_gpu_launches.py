"""How many kernels one decode step launches in a layer of DeepSeek-V3's kind."""

from __future__ import annotations

from collections import Counter

import interpreted
import numpy as np
import pytest
import torch
from launch_count import counted_launches
from trimaran.synth import write_random_model
from trimaran_attn.graph.inputs import DecodeInputs, InputShape
from trimaran_attn.model.attention import LatentAttention
from trimaran_attn.model.gate import Gate
from trimaran_attn.model.gpu_attention import GpuLatentAttention
from trimaran_attn.model.gpu_small import GpuGate, GpuRMSNorm
from trimaran_attn.model.norm import RMSNorm
from trimaran_attn.model.step import Step
from trimaran_kernels.gpu import gemm, gemv

pytestmark = pytest.mark.skipif(interpreted.ON_GPU, reason="counted in the interpreter")
CPU = torch.device("cpu")


class NoExperts:
    """In the routed experts' place: their launches are the hop's, or the experts' own."""

    def submit(
        self, _layer: int, x: torch.Tensor, _ids: torch.Tensor, _weights: torch.Tensor
    ) -> torch.Tensor:
        return x

    def wait(self, ticket: torch.Tensor) -> torch.Tensor:
        return ticket


@pytest.fixture
def count(tmp_path, build_lab, monkeypatch):
    """Launches of the last layer for one token."""
    monkeypatch.setattr(gemv, "rows_per_program", lambda _: 512)
    monkeypatch.setattr(gemm, "choose_tile", lambda _: gemm.Tile(rows=512, tokens=16, codes=128, warps=4))
    path = write_random_model(tmp_path / "m.gguf", "v3", mix="Q4_K_M", tokenizer=False)

    def run() -> Counter[str]:
        lab = build_lab(path, linears="gpu", native=False, mla="absorbed")
        layer = lab.model._layers[-1]
        layer.feed_forward._experts = NoExperts()
        (stage,) = DecodeInputs(InputShape(1, 64, lab.spec.hidden_size, torch.float32, 1), (CPU,)).stages
        x = torch.randn(1, lab.spec.hidden_size)
        angles = torch.rand(1, lab.spec.qk_rope_head_dim // 2)
        stage.batch.decode.lengths.fill_(1)
        step = Step(stage.batch, angles.cos(), angles.sin(), lab.cache, lab.model._options.tracer)
        with np.errstate(all="ignore"), torch.inference_mode(), counted_launches() as counts:
            layer.begin(x, step)()
        return counts

    return run


def test_launches_of_a_layer(count, monkeypatch):
    fused = count()
    assert fused["gemv_kernel"] == 6  # query down and up, latents, output, shared experts' two
    assert fused["norm_kernel"] == 3
    assert fused["rotate_kernel"] == fused["router_kernel"] == fused["choose_kernel"] == 1
    assert fused["ge"] == 1  # which rows are padding: once a step
    assert fused.total() - 1 <= 21, fused
    monkeypatch.setattr(GpuLatentAttention, "_rotate", LatentAttention._rotate)
    monkeypatch.setattr(GpuRMSNorm, "__call__", RMSNorm.__call__)
    monkeypatch.setattr(GpuRMSNorm, "after_adding", RMSNorm.after_adding)
    monkeypatch.setattr(GpuGate, "__call__", Gate.__call__)
    plain = count()
    assert plain.total() >= 40, plain
