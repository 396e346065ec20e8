"""A fingerprint follows the model, not its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from trimaran.fingerprint import explain_mismatch, fingerprint
from trimaran.gguf import GGUFFile
from trimaran.spec import read_spec
from trimaran.synth import write_random_model


def of(path: Path) -> str:
    return fingerprint(GGUFFile.open(path))


def test_same_model_in_other_files(tmp_path: Path) -> None:
    whole = write_random_model(tmp_path / "whole.gguf", "v2-lite")
    parts = write_random_model(tmp_path / "parts.gguf", "v2-lite", parts=3, tokenizer=False)
    assert of(whole) == of(parts)
    assert explain_mismatch(of(whole), of(parts)) == ""
    file = GGUFFile.open(whole)
    assert fingerprint(file, read_spec(file)) == of(whole)


def test_what_differs_is_said(random_model: Callable[..., Path]) -> None:
    model = of(random_model("v2-lite"))
    assert explain_mismatch(model, of(random_model("v2-lite", seed=1))) == "other expert weights"
    assert explain_mismatch(model, of(random_model("v2-lite", yarn=False))) == "other dimensions"
    assert explain_mismatch(model, of(random_model("v2-lite", layout="kv_b"))) == (
        "other tensor names, types or shapes"
    )
    assert explain_mismatch(model, of(random_model("v2-lite", mix="Q8_0"))) == (
        "other tensor names, types or shapes and other expert weights"
    )
    assert explain_mismatch(model, "something else") == "a fingerprint of another kind"


def test_samples_stay_inside_small_tensors(random_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    path.write_bytes(random_model("v2-lite").read_bytes())
    before = of(path)
    info = GGUFFile.open(path).tensors["blk.2.ffn_down_exps.weight"]
    data = np.memmap(path, mode="r+")
    data[info.offset + info.nbytes // 4] ^= 1
    data.flush()
    assert explain_mismatch(before, of(path)) == "other expert weights"
