"""The writer refuses what a reader would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from trimaran.gguf import GGMLType, GGUFFile, TensorData, write_gguf, write_split_gguf
from trimaran.gguf.encode import Writable, encode_value

FOUR = np.arange(4, dtype=np.float32)


def tensor(name: str = "t", size: int = 16) -> TensorData:
    return TensorData(name, GGMLType.F32, (2, 2), np.zeros(size, np.uint8))


def test_data_are_made_when_their_turn_comes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {}, [TensorData("t", GGMLType.F32, (4,), lambda: FOUR.view(np.uint8))])
    np.testing.assert_array_equal(GGUFFile.open(path).raw("t").view(np.float32), FOUR)


def test_wrong_size_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'t' has uint8\[15\], not uint8\[16\] for F32\[2, 2\]"):
        write_gguf(tmp_path / "model.gguf", {}, [tensor(size=15)])
    assert list(tmp_path.iterdir()) == []


def test_wrong_dtype_and_names(tmp_path: Path) -> None:
    floats = TensorData("t", GGMLType.F32, (4,), FOUR)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float32"):
        write_gguf(tmp_path / "model.gguf", {}, [floats])
    with pytest.raises(ValueError, match="same name"):
        write_gguf(tmp_path / "model.gguf", {}, [tensor(), tensor()])
    with pytest.raises(TypeError, match="alignment"):
        write_gguf(tmp_path / "model.gguf", {"general.alignment": "32"}, [])
    with pytest.raises(ValueError, match="2 tensors cannot be split in 3 parts"):
        write_split_gguf(tmp_path, "model", {}, [tensor("a"), tensor("b")], 3)


@pytest.mark.parametrize("value", [None, object(), np.complex64(1), [None], np.array(["a"])])
def test_foreign_values(value: Writable) -> None:
    with pytest.raises(TypeError):
        encode_value(value)


def test_integer_that_is_too_large() -> None:
    with pytest.raises(OverflowError):
        encode_value(1 << 64)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1, 4),
        (-1, 5),
        (1 << 40, 10),
        (-(1 << 40), 11),
        (1.0, 6),
        (True, 7),
        ("", 8),
        ([1], 9),
        (np.int8(1), 1),
    ],
)
def test_value_types(value: Writable, kind: int) -> None:
    assert encode_value(value)[:4] == bytes([kind, 0, 0, 0])
