from __future__ import annotations

import numpy as np
import pytest
import torch
import trimaran_kernels
from interpreted import DEVICE
from trimaran.gguf import GGMLType
from trimaran.gpu_weights import gpu_type, is_re_encoded
from trimaran_kernels.gpu.load import encode_q8_0, load_matrix
from trimaran_kernels.gpu.reference import expand_reference

SHAPE = (6, 512)


def weights_of(type_: GGMLType, raw: np.ndarray) -> np.ndarray:
    return trimaran_kernels.dequantize(int(type_), raw, SHAPE[0] * SHAPE[1]).reshape(SHAPE)


def test_native_types_keep_their_weights(native, make_blocks):
    raw = make_blocks(native, *SHAPE).numpy()
    matrix = load_matrix(native, raw, SHAPE, DEVICE)
    assert matrix.type is native
    got = expand_reference(matrix).cpu().numpy()
    np.testing.assert_allclose(got, weights_of(native, raw), rtol=1e-6, atol=1e-7)


def test_q5_0_loses_nothing(make_blocks):
    raw = make_blocks(GGMLType.Q5_0, *SHAPE).numpy()
    matrix = load_matrix(GGMLType.Q5_0, raw, SHAPE, DEVICE)
    assert matrix.type is GGMLType.Q8_0
    assert not is_re_encoded(GGMLType.Q5_0)
    np.testing.assert_array_equal(expand_reference(matrix).cpu().numpy(), weights_of(GGMLType.Q5_0, raw))


@pytest.mark.parametrize("type_", [GGMLType.IQ2_XS, GGMLType.IQ3_S])
def test_other_types_become_the_nearest_q8_0(make_blocks, type_):
    raw = make_blocks(type_, *SHAPE).numpy()
    matrix = load_matrix(type_, raw, SHAPE, DEVICE)
    assert is_re_encoded(type_)
    expected = weights_of(type_, raw).reshape(-1, 32)
    error = np.abs(expand_reference(matrix).cpu().numpy().reshape(-1, 32) - expected)
    # half a step of the block's scale, and a little for the rounding of the scale itself
    assert (error <= np.abs(expected).max(1, keepdims=True) / 127 * 0.57).all()


def test_blocks_of_zeros_stay_zeros():
    assert not encode_q8_0(torch.zeros(64)).any()


def test_floats_become_bfloat16():
    assert {gpu_type(type_) for type_ in (GGMLType.F32, GGMLType.F16, GGMLType.BF16)} == {GGMLType.BF16}
