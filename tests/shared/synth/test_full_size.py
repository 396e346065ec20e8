"""A model of full size with random weights: few layers of it, read back, with its tokeniser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trimaran.gguf import GGUFFile
from trimaran.gguf.mix import mix_named
from trimaran.spec import read_spec
from trimaran.synth import REAL_SPECS, wide_tokenizer, write_full_size_model
from trimaran.synth.weights import tensor_shapes


def test_one_layer(tmp_path: Path) -> None:
    path = write_full_size_model(tmp_path / "m.gguf", "DeepSeek-V2-Lite", n_layers=1)
    real = REAL_SPECS["DeepSeek-V2-Lite"]
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
        assert (spec.n_layers, spec.hidden_size, spec.moe) == (1, real.hidden_size, real.moe)
        assert len(file.metadata["tokenizer.ggml.tokens"]) == real.vocab_size
        choose = mix_named("Q4_K_M").choose
        for name, shape in tensor_shapes(spec, "split").items():
            info = file.tensor(name)
            assert (info.shape, info.type) == (shape, choose(name, shape, 1))
        norm = file.raw("output_norm.weight").view(np.float32)
        assert norm.mean() == pytest.approx(1, abs=0.05)


def test_wide_tokenizer() -> None:
    tokenizer = wide_tokenizer(20_000)
    assert len(tokenizer.tokens) == len(set(tokenizer.tokens)) == len(tokenizer.types) == 20_000
    words = set(tokenizer.tokens)
    for merge in tokenizer.merges:
        left, right = merge.split(" ")
        assert {left, right, left + right} <= words


@pytest.mark.parametrize("size", [10, 10_000_000])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ValueError, match=f"of {size} tokens"):
        wide_tokenizer(size)
