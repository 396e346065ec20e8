"""Matrices that stay quantised in GPU memory. Needs Triton, so it is imported only where there is a GPU."""

from __future__ import annotations

from torch import Tensor
from trimaran.gguf import GGMLType
from trimaran.gpu_weights import gpu_type
from trimaran_kernels.gpu.linear import quant_linear, quant_swiglu
from trimaran_kernels.gpu.load import load_matrix
from trimaran_kernels.gpu.matrix import QuantMatrix

from trimaran_attn.model.linear import DenseLinear, Linear, matrix_path
from trimaran_attn.registry import Site


class GpuLinear:
    """A matrix in the form of `trimaran.gpu_weights`, computed with by Triton kernels.

    Args:
        matrix: [out, in].
    """

    def __init__(self, matrix: QuantMatrix) -> None:
        self.matrix = matrix

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] → [T, out]."""
        return quant_linear(x, self.matrix)

    def swiglu_with(self, up: Linear) -> Linear | None:
        """silu(self(x)) × up(x) as one kernel, if `up` is such a matrix too."""
        return GpuSwiGLU(self.matrix, up.matrix) if isinstance(up, GpuLinear) else None


class GpuSwiGLU:
    """silu(gate·x) × up·x, fused."""

    def __init__(self, gate: QuantMatrix, up: QuantMatrix) -> None:
        self._gate = gate
        self._up = up

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, in] → [T, width]."""
        return quant_swiglu(x, self._gate, self._up)


def build_gpu_linear(site: Site) -> Linear:
    """Quantised weights stay so; plain numbers become the site's element type."""
    tensor = site.weights.quantised(matrix_path(site), site.shape)
    if gpu_type(tensor.type) is GGMLType.BF16:
        return DenseLinear(tensor.dequantize().to(site.device, site.dtype))
    n_rows, width = tensor.shape
    return GpuLinear(load_matrix(tensor.type, tensor.raw, (n_rows, width), site.device))
