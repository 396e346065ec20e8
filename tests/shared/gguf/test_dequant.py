"""Every type against the independent `gguf` package, to the last bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from numpy.typing import NDArray
from trimaran.gguf import GGMLType
from trimaran.gguf import dequant as dequant_module
from trimaran.gguf.dequant import dequantize

PLAIN = (GGMLType.F64, GGMLType.I8, GGMLType.I16, GGMLType.I32, GGMLType.I64)
WEIGHTS = [kind for kind in GGMLType if kind not in PLAIN]


def reference(kind: GGMLType, raw: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    rows = raw.reshape(-1, kind.row_bytes(shape[-1]))
    with np.errstate(all="ignore"):
        return (
            quants.dequantize(rows, gguf.GGMLQuantizationType(kind.value)).astype(np.float32).reshape(shape)
        )


def assert_same(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    """Equal to the last bit, the sign of zero included; any NaN equals any other."""
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
def test_sizes_agree(kind: GGMLType) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind.value)] == (kind.block_size, kind.type_size)
    assert gguf.GGMLQuantizationType(kind.value).name == kind.name


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(1, 256), (3, 512), (2, 5, 768)])
def test_random_bytes(kind: GGMLType, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape[:-1])) * kind.row_bytes(shape[-1])
    raw = np.random.default_rng(kind.value).integers(0, 256, size, np.uint8)
    ours = dequantize(kind, raw, shape)
    assert ours.dtype == np.float32
    assert ours.shape == shape
    assert_same(ours, reference(kind, raw, shape))


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
def test_every_byte_at_every_place(kind: GGMLType) -> None:
    """Blocks of one repeated byte: indices and scales at their extremes, infinite, NaN, denormal."""
    blocks = np.repeat(np.arange(256, dtype=np.uint8), kind.row_bytes(256))
    assert_same(dequantize(kind, blocks, (256, 256)), reference(kind, blocks, (256, 256)))


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
def test_float16_scales_of_every_kind(kind: GGMLType) -> None:
    """Each aligned pair of bytes takes special float16 values in turn."""
    specials = np.array([0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0x7C00, 0xFC00, 0x7E00], np.uint16)
    pairs = kind.row_bytes(256) // 2
    rows = np.random.default_rng(7).integers(0, 256, (pairs * len(specials), 2 * pairs), np.uint8)
    for row, (pair, special) in enumerate(np.ndindex(pairs, len(specials))):
        rows[row, 2 * pair : 2 * pair + 2] = specials[special : special + 1].view(np.uint8)
    shape = (len(rows), 256)
    assert_same(dequantize(kind, rows.ravel(), shape), reference(kind, rows.ravel(), shape))


@pytest.mark.parametrize("kind", WEIGHTS, ids=lambda kind: kind.name)
def test_pieces_join(kind: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (7, 256)
    raw = np.random.default_rng(1).integers(0, 256, 7 * kind.row_bytes(256), np.uint8)
    whole = dequantize(kind, raw, shape)
    monkeypatch.setattr(dequant_module, "VALUES_AT_ONCE", 512)
    assert_same(dequantize(kind, raw, shape), whole)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_plain_numbers(kind: GGMLType) -> None:
    dtype = f"{'f' if kind is GGMLType.F64 else 'i'}{kind.type_size}"
    values = np.array([[0, 1, -2], [100, -128, 127]], dtype)
    raw = values.view(np.uint8).ravel()
    np.testing.assert_array_equal(dequantize(kind, raw, (2, 3)), values.astype(np.float32))


def test_narrow_rows_of_small_blocks() -> None:
    kind = GGMLType.Q5_0
    raw = np.random.default_rng(0).integers(0, 256, 5 * kind.row_bytes(96), np.uint8)
    assert_same(dequantize(kind, raw, (5, 96)), reference(kind, raw, (5, 96)))


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"Q8_0\[2, 32\] needs uint8\[68\], not uint8\[67\]"):
        dequantize(GGMLType.Q8_0, np.zeros(67, np.uint8), (2, 32))
    with pytest.raises(ValueError, match="no multiple of Q4_K"):
        dequantize(GGMLType.Q4_K, np.zeros(144, np.uint8), (1, 255))
    with pytest.raises(ValueError, match="not float32"):
        dequantize(GGMLType.F32, np.zeros(4, np.float32), (1,))  # type: ignore[arg-type]
