from __future__ import annotations

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType
from trimaran.errors import KernelError
from trimaran_kernels import dequantize, supported_types

N_BLOCKS = 67


def assert_same_bits(got, expected):
    nan = np.isnan(got) & np.isnan(expected)
    differs = (got.view(np.uint32) != expected.view(np.uint32)) & ~nan
    assert not differs.any(), f"{differs.sum()} differ, first: {got[differs][0]!r} ≠ {expected[differs][0]!r}"


def test_names_and_sizes_are_those_of_the_format():
    for type_id, name, block_size, type_size in supported_types():
        assert GGMLQuantizationType(type_id).name == name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(type_id)] == (block_size, type_size)


def test_all_types_of_the_design_are_there():
    plain = {"F32", "F16", "BF16"}
    legacy = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    k_types = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    iq = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"}
    assert {name for _, name, _, _ in supported_types()} == plain | legacy | k_types | iq


@pytest.mark.parametrize("blocks", ["random", "ones", "zeros", "plain"])
def test_bits_equal_the_gguf_package(weight_type, isa, rng, blocks):
    n = N_BLOCKS * max(weight_type.block_size, 32)
    size = n // weight_type.block_size * weight_type.type_size
    raw = {
        "random": lambda: rng.integers(
            0, 256, size, dtype=np.uint8
        ),  # scales of any bits: NaN, infinity, subnormal
        "ones": lambda: np.full(size, 0xFF, np.uint8),
        "zeros": lambda: np.zeros(size, np.uint8),
        "plain": lambda: weight_type.random(rng, 1, n),
    }[blocks]()
    assert_same_bits(dequantize(weight_type.id, raw, n, isa), weight_type.decode(raw, 1, n).ravel())


def test_every_f16_value(isa):
    raw = np.arange(65536, dtype="<u2").view(np.uint8)
    assert_same_bits(dequantize(1, raw, 65536, isa), raw.view("<f2").astype(np.float32))


def test_lengths_that_no_vector_divides(isa, type_named, rng):
    for name in ("F32", "F16", "BF16"):
        for n in (1, 7, 9, 31):
            raw = type_named(name).random(rng, 1, n)
            assert_same_bits(
                dequantize(type_named(name).id, raw, n, isa), type_named(name).decode(raw, 1, n).ravel()
            )


def test_unaligned_bytes(weight_type, isa, rng):
    n = 2 * max(weight_type.block_size, 32)
    raw = weight_type.random(rng, 1, n)
    shifted = np.concatenate([np.zeros(1, np.uint8), raw])[1:]
    assert_same_bits(dequantize(weight_type.id, shifted, n, isa), dequantize(weight_type.id, raw, n, isa))


@pytest.mark.parametrize(
    ("type_id", "raw", "n", "message"),
    [
        (3000, np.zeros(64, np.uint8), 32, "ggml_type: GGUF type 3000 is not supported"),
        (12, np.zeros(143, np.uint8), 256, "raw: 143 bytes"),
        (12, np.zeros(144, np.uint8), 255, "raw: 255 columns"),
        (12, np.zeros(144, np.uint8), -256, "n: must not be negative"),
        (12, np.zeros(144, np.int8), 256, "raw: need an array of uint8"),
        (12, np.zeros((1, 144), np.uint8), 256, "raw: need 1 dimensions"),
        (12, np.zeros(288, np.uint8)[::2], 256, "raw: need a C-contiguous array"),
        (12, [1, 2, 3], 256, "raw: need an array of uint8"),
    ],
)
def test_bad_input_is_named(type_id, raw, n, message):
    with pytest.raises(KernelError, match=message):
        dequantize(type_id, raw, n)


def test_unknown_isa():
    with pytest.raises(KernelError, match='isa "sse9"'):
        dequantize(0, np.zeros(4, np.uint8), 1, "sse9")


def test_no_weights_at_all(weight_type, isa):
    assert dequantize(weight_type.id, np.zeros(0, np.uint8), 0, isa).shape == (0,)
