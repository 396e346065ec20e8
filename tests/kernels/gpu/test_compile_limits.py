"""The limits that kernels are compiled against."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from compile_limits import complaints, missing_kernels


@dataclass(frozen=True)
class Facts:
    case: str = "linear Q4_K 16"
    kernel: str = "few_kernel"
    grid: tuple[int, ...] = (65536, 28)
    spilled: int = 0
    shared: int = 32 << 10
    mma: int = 40
    wide: int = 8
    loop: int = 700


def test_nothing_wrong():
    assert complaints(Facts(), 90) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"shared": 100 << 10}, "shared memory"),
        ({"grid": (28, 65536)}, "grid"),
        ({"spilled": 40}, "spilled"),
        ({"kernel": "grouped_up_kernel", "spilled": 500}, "spilled"),
        ({"mma": 0}, "tensor cores"),
        ({"wide": 0}, "16 bytes"),
        ({"kernel": "fixed_gemv_kernel", "loop": 2000}, "instructions"),
    ],
)
def test_each_limit(change, what):
    found = complaints(replace(Facts(), **change), 89)
    assert len(found) == 1
    assert what in found[0]


def test_float32_is_multiplied_without_tensor_cores():
    assert complaints(Facts(case="linear Q4_K float32 5", mma=0, wide=0), 90) == []


def test_kernels_without_a_case_are_found():
    every = missing_kernels([])
    assert {"few_kernel", "fixed_gemv_kernel", "grouped_sum_kernel", "draw_kernel"} <= every
    assert missing_kernels(every) == set()
    assert missing_kernels(every - {"few_kernel"}) == {"few_kernel"}
