from __future__ import annotations

import numpy as np
import pytest
import torch
import trimaran_kernels
from trimaran.gguf import GGMLType, TensorInfo
from trimaran.gpu_weights import gpu_bytes
from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.reference import expand_reference


def test_planes_hold_the_files_weights(native, make_blocks):
    rows, columns = 5, 3 * 256
    raw = make_blocks(native, rows, columns)
    matrix = QuantMatrix.from_blocks(native, raw, (rows, columns))
    expected = trimaran_kernels.dequantize(int(native), raw.numpy(), rows * columns).reshape(rows, columns)
    np.testing.assert_allclose(expand_reference(matrix).numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [0, 255])
def test_extreme_codes(native, make_blocks, bits):
    """All bits of codes and sub-scales clear, or set; the super-scales stay sane."""
    raw = make_blocks(native, 1, 256).view(-1, native.type_size)
    random = raw.clone()
    raw.fill_(bits)
    start = 208 if native is GGMLType.Q6_K else 0
    stop = start + (4 if native in (GGMLType.Q4_K, GGMLType.Q5_K) else 2)
    raw[:, start:stop] = random[:, start:stop]
    matrix = QuantMatrix.from_blocks(native, raw.flatten(), (1, 256))
    expected = trimaran_kernels.dequantize(int(native), raw.flatten().numpy(), 256)
    np.testing.assert_allclose(expand_reference(matrix)[0].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_the_plan_counts_what_planes_take(native, make_blocks):
    raw = make_blocks(native, 4, 512)
    matrix = QuantMatrix.from_blocks(native, raw, (4, 512))
    planned = gpu_bytes(TensorInfo("w", native, (4, 512), 0, 0, raw.nbytes))
    assert matrix.nbytes == planned
    assert raw.nbytes <= planned <= raw.nbytes * 1.03


def test_rows_of_32_columns_more_than_a_multiple_of_64(make_blocks):
    raw = make_blocks(GGMLType.Q8_0, 3, 96)
    matrix = QuantMatrix.from_blocks(GGMLType.Q8_0, raw, (3, 96))
    expected = trimaran_kernels.dequantize(int(GGMLType.Q8_0), raw.numpy(), 3 * 96)
    torch.testing.assert_close(expand_reference(matrix).flatten(), torch.from_numpy(expected))
