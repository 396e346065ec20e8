"""The real dimensions add up to the published sizes, and a model of full size is opened at once."""

from __future__ import annotations

import time
from math import prod
from pathlib import Path

import pytest
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.spec import read_spec
from trimaran.synth import REAL_SPECS, RealName, write_hollow_model
from trimaran.synth.weights import tensor_shapes


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("DeepSeek-V2", 235.7),
        ("DeepSeek-V2-Lite", 15.7),
        ("DeepSeek-V3", 671.0),
        ("Kimi-K2", 1026.4),
        ("Moonlight-16B-A3B", 15.96),
    ],
)
def test_parameters(name: RealName, billions: float) -> None:
    shapes = tensor_shapes(REAL_SPECS[name], "kv_b")
    assert sum(prod(shape) for shape in shapes.values()) / 1e9 == pytest.approx(billions, rel=0.002)


def test_full_size_in_parts(tmp_path: Path) -> None:
    path = write_hollow_model(tmp_path / "DeepSeek-R1-Q4_K_M.gguf", "DeepSeek-V3", parts=10)
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.iterdir()) < 16 << 20
    start = time.process_time()
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
        fingerprint(file, spec)
        assert time.process_time() - start < 2.0
        assert (spec.n_layers, spec.moe.n_experts, len(file.paths)) == (61, 256, 10)
        assert file.nbytes == pytest.approx(404e9, rel=0.03)
        assert file.raw("blk.60.ffn_gate_exps.weight").nbytes == 256 * (2048 * 7168 * 144 // 256)
