"""Quantisers: bounded errors on all sorts of data, and bytes that the `gguf` package reads as we do."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from trimaran.gguf import GGMLType
from trimaran.gguf import quantize as quantize_module
from trimaran.gguf.dequant import dequantize
from trimaran.gguf.quantize import QUANTIZABLE, quantize

Floats = NDArray[np.float32]

RMSE_OF_GAUSSIAN = {
    GGMLType.F32: 0.0,
    GGMLType.F16: 0.0003,
    GGMLType.BF16: 0.002,
    GGMLType.Q4_0: 0.088,
    GGMLType.Q4_1: 0.080,
    GGMLType.Q5_0: 0.044,
    GGMLType.Q5_1: 0.039,
    GGMLType.Q8_0: 0.0055,
    GGMLType.Q2_K: 0.280,
    GGMLType.Q3_K: 0.150,
    GGMLType.Q4_K: 0.073,
    GGMLType.Q5_K: 0.037,
    GGMLType.Q6_K: 0.018,
    GGMLType.IQ4_NL: 0.077,
    GGMLType.IQ4_XS: 0.078,
}
"""Upper bounds of the root mean square error, relative to the standard deviation."""

KINDS = sorted(QUANTIZABLE)


def name_of(kind: GGMLType) -> str:
    return kind.name


def round_trip(kind: GGMLType, x: Floats) -> Floats:
    return dequantize(kind, quantize(kind, x), x.shape)


def relative_error(kind: GGMLType, x: Floats) -> float:
    return float(np.sqrt(np.square(round_trip(kind, x) - x).mean()) / x.std())


def gaussian(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_all_types_have_a_bound() -> None:
    assert set(RMSE_OF_GAUSSIAN) == QUANTIZABLE


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_gaussian(kind: GGMLType, scale: float) -> None:
    assert relative_error(kind, gaussian(64, 1024) * np.float32(scale)) <= RMSE_OF_GAUSSIAN[kind]


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("sort", ["uneven rows", "positive", "shifted", "heavy tails"])
def test_other_distributions(kind: GGMLType, sort: str) -> None:
    x = {
        "uneven rows": gaussian(64, 512) * np.geomspace(1e-3, 10, 64, dtype=np.float32)[:, None],
        "positive": np.abs(gaussian(64, 512)),
        "shifted": gaussian(64, 512) - 3,
        "heavy tails": gaussian(64, 512) ** 3,
    }[sort]
    bound = RMSE_OF_GAUSSIAN[kind] * (3.5 if sort == "shifted" else 2.0)
    assert relative_error(kind, x) <= bound


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_the_gguf_package_decodes_the_same(kind: GGMLType) -> None:
    x = gaussian(9, 768, seed=2)
    raw = quantize(kind, x)
    theirs = quants.dequantize(raw.reshape(9, -1), gguf.GGMLQuantizationType(kind.value)).reshape(9, 768)
    np.testing.assert_array_equal(dequantize(kind, raw, x.shape), theirs)


@pytest.mark.parametrize("kind", [GGMLType.BF16, GGMLType.F16, GGMLType.Q8_0], ids=name_of)
def test_simple_types_are_what_the_gguf_package_writes(kind: GGMLType) -> None:
    x = gaussian(9, 256, seed=3)
    theirs = quants.quantize(x, gguf.GGMLQuantizationType(kind.value)).view(np.uint8).ravel()
    np.testing.assert_array_equal(quantize(kind, x), theirs)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.block_size == 32 and kind.name[0] == "Q"])
def test_the_search_beats_plain_rounding(kind: GGMLType) -> None:
    """For the types that the `gguf` package can write as well: never clearly worse than it."""
    x = gaussian(64, 256, seed=4)
    raw = quants.quantize(x, gguf.GGMLQuantizationType(kind.value)).view(np.uint8).ravel()
    plain = np.square(dequantize(kind, raw, x.shape) - x).mean()
    assert np.square(round_trip(kind, x) - x).mean() <= plain * 1.001 + 1e-12


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 1e-30, -60000.0])
def test_constant_rows(kind: GGMLType, value: float) -> None:
    x = np.full((2, 256), value, np.float32)
    np.testing.assert_allclose(round_trip(kind, x), x, rtol=0.04, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_vanishing_values(kind: GGMLType) -> None:
    """Below what a float16 scale can hold they become zeros, without a warning on the way."""
    for exponent in range(-45, -9, 3):
        x = gaussian(2, 256) * np.float32(10.0**exponent)
        np.testing.assert_allclose(round_trip(kind, x), x, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_one_outlier_keeps_its_size(kind: GGMLType) -> None:
    x = gaussian(1, 256) * np.float32(0.01)
    x[0, 77] = -20.0
    assert round_trip(kind, x)[0, 77] == pytest.approx(-20.0, rel=0.07)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=16),
    st.integers(0, 2**32 - 1),
)
def test_any_values_within_range(kind: GGMLType, values: list[float], seed: int) -> None:
    x = np.random.default_rng(seed).choice(np.array(values, np.float32), (2, 256))
    y = round_trip(kind, x)
    assert np.isfinite(y).all()
    assert np.abs(y - x).max() <= 1.2 * np.abs(x).max() + 1e-5


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_pieces_join(kind: GGMLType, monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(3, 512)
    whole = quantize(kind, x)
    monkeypatch.setattr(quantize_module, "VALUES_AT_ONCE", 512)
    np.testing.assert_array_equal(quantize(kind, x), whole)


def test_special_floats() -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 1e-45, 3.4e38, -0.0]], np.float32)
    for kind in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        y = round_trip(kind, x)
        assert np.isnan(y[0, 0])
        assert list(y[0, 1:3]) == [np.inf, -np.inf]
        assert np.signbit(y[0, 5])


def test_what_cannot_be_quantised() -> None:
    with pytest.raises(NotImplementedError, match="IQ2_XS cannot be written"):
        quantize(GGMLType.IQ2_XS, gaussian(1, 256))
    with pytest.raises(ValueError, match="255 values is no multiple of Q4_K's block of 256"):
        quantize(GGMLType.Q4_K, gaussian(1, 255))
    for value in (np.nan, np.inf, 70000.0):
        with pytest.raises(ValueError, match="cannot be quantised to Q8_0"):
            quantize(GGMLType.Q8_0, np.full((1, 32), value, np.float32))
