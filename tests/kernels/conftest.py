from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray
from trimaran_kernels import ThreadPool, built_isas, supported_types, usable_cpus

# Offsets of the f16 scales in a block; random bits there would give infinities and NaN.
SCALE_OFFSETS = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}
FLOAT_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class WeightType:
    id: int
    name: str
    block_size: int
    type_size: int

    def random(self, rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
        """Random blocks with scales that give weights around 1."""
        if self.name in FLOAT_TYPES:
            values = rng.standard_normal((rows, columns), dtype=np.float32)
            packed = quants.quantize(values, GGMLQuantizationType(self.id))
            return np.ascontiguousarray(packed).view(np.uint8).reshape(-1)
        n_blocks = rows * columns // self.block_size
        blocks = rng.integers(0, 256, (n_blocks, self.type_size), dtype=np.uint8)
        scales = rng.uniform(0.001, 0.02, (n_blocks, 2)).astype("<f2")
        if self.name == "IQ1_M":  # its scale is spread over the top nibbles of four words
            bits = scales[:, 0].view("<u2")
            words = blocks[:, 48:56].view("<u2")
            for i in range(4):
                words[:, i] = (words[:, i] & 0x0FFF) | ((bits >> (4 * i) & 15) << 12)
        else:
            for i, offset in enumerate(SCALE_OFFSETS.get(self.name, (0,))):
                blocks[:, offset : offset + 2] = scales[:, i : i + 1].view(np.uint8)
        return blocks.reshape(-1)

    def decode(self, raw: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
        """The gguf package's opinion of what `raw` means."""
        with np.errstate(all="ignore"):
            values = quants.dequantize(raw.reshape(rows, -1), GGMLQuantizationType(self.id))
        return np.asarray(values, dtype=np.float32).reshape(rows, columns)


TYPES = [WeightType(*entry) for entry in supported_types()]


@pytest.fixture(params=TYPES, ids=lambda t: t.name)
def weight_type(request: pytest.FixtureRequest) -> WeightType:
    return request.param


@pytest.fixture
def type_named() -> Callable[[str], WeightType]:
    return {t.name: t for t in TYPES}.__getitem__


@pytest.fixture(params=built_isas())
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def pool() -> ThreadPool:
    return ThreadPool(usable_cpus())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)
