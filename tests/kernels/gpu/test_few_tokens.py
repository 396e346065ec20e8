"""2 to 16 tokens, whose codes are multiplied as they are: against the reference, and PTX against codes."""

from __future__ import annotations

import interpreted
import pytest
import torch
from ptx import run_ptx
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu import unpack
from trimaran_kernels.gpu.few_tokens import Plan, few_tokens, make_plan
from trimaran_kernels.gpu.layouts import IQ4_LEVELS, LAYOUTS
from trimaran_kernels.gpu.reference import linear_reference
from trimaran_kernels.gpu.unpack import Unpacking

TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4}


def tokens(n: int, width: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n)).to(interpreted.DEVICE, dtype)


def assert_near(got: torch.Tensor, expected: torch.Tensor, factor: float = 1) -> None:
    assert got.isfinite().all()
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error < factor * TOLERANCE[got.dtype]


@pytest.mark.parametrize("n", [3, 15])
def test_every_type(native, make_matrix, n):
    matrix = make_matrix(native, 70, 768)
    x = tokens(n, 768)
    assert_near(few_tokens(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize("type_", [GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.IQ4_XS])
def test_codes_are_exact(make_matrix, type_):
    """In float32 nothing is rounded but sums."""
    matrix = make_matrix(type_, 9, 512)
    x = tokens(4, 512, torch.float32)
    assert_near(few_tokens(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize("n", [1, 2, 8, 16])
def test_batches(make_matrix, n):
    matrix = make_matrix(GGMLType.Q4_K, 33, 256)
    x = tokens(n, 256)
    assert_near(few_tokens(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize(("rows", "width"), [(1, 256), (130, 512), (3, 4352)])
def test_shapes(make_matrix, rows, width):
    """Rows that fill no program; widths that are split, evenly or not."""
    matrix = make_matrix(GGMLType.Q6_K, rows, width)
    x = tokens(5, width)
    assert_near(few_tokens(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize("type_", [GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.IQ4_NL])
@pytest.mark.parametrize("width", [32, 96, 1440])
def test_widths_of_small_blocks(make_matrix, type_, width):
    matrix = make_matrix(type_, 10, width)
    x = tokens(2, width)
    assert_near(few_tokens(x, matrix), linear_reference(x, matrix))


@pytest.mark.parametrize("type_", [GGMLType.Q4_K, GGMLType.Q8_0])
@pytest.mark.parametrize(("n", "width"), [(2, 256), (16, 2048)])
def test_swiglu(make_matrix, type_, n, width):
    """Whole in one program, and split along K."""
    gate, up = make_matrix(type_, 37, width), make_matrix(type_, 37, width)
    x = tokens(n, width) * 0.1
    assert_near(few_tokens(x, gate, up), linear_reference(x, gate, up), 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_token_keeps_what_is_no_number_to_itself(make_matrix, bad):
    matrix = make_matrix(GGMLType.Q5_K, 20, 1024)
    x = tokens(5, 1024)
    clean = few_tokens(x, matrix)
    x[1, 700] = bad
    dirty = few_tokens(x, matrix)
    assert not dirty[1].isfinite().any()
    assert torch.equal(dirty[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])


def test_a_token_does_not_depend_on_its_mates(make_matrix):
    matrix = make_matrix(GGMLType.Q4_K, 40, 1024)
    x = tokens(8, 1024)
    whole = few_tokens(x, matrix)
    others = torch.cat((x[5:6], tokens(7, 1024)))
    assert torch.equal(few_tokens(others, matrix)[0], whole[5])


@pytest.mark.parametrize("plane", ["supers", "super_mins"])
def test_a_scale_that_is_no_number_spoils_its_row(make_matrix, plane):
    """The last row is also the one that stands in for rows that do not exist."""
    matrix = make_matrix(GGMLType.Q4_K, 66, 512)
    x = tokens(3, 512)
    clean = few_tokens(x, matrix)
    for row in (4, 65):
        getattr(matrix.planes, plane)[row, 1] = torch.nan
    dirty = few_tokens(x, matrix)
    assert dirty[:, [4, 65]].isnan().all()
    rest = [row for row in range(66) if row not in (4, 65)]
    assert torch.equal(dirty[:, rest], clean[:, rest])


def test_there_is_work_for_a_whole_gpu():
    assert make_plan(5, 24576, 24, dual=False) == Plan(rows=64, tokens=8, steps=6, splits=1)
    assert make_plan(9, 7168, 256, dual=False) == Plan(rows=64, tokens=16, steps=22, splits=3)
    assert make_plan(2, 576, 112, dual=False) == Plan(rows=64, tokens=8, steps=2, splits=14)
    assert make_plan(16, 2048, 112, dual=True) == Plan(rows=32, tokens=16, steps=7, splits=4)
    assert make_plan(2, 1, 1, dual=False).splits == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("type_", [type_ for type_ in LAYOUTS if type_ is not GGMLType.Q8_0])
def test_the_ptx_of_nibbles(monkeypatch, type_, dtype):
    """And of the bits above them, added up."""
    layout, unpacking = LAYOUTS[type_], unpacking_on_gpus(monkeypatch, type_, dtype)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        codes, bits = torch.randint(0, 256, (2, 4), generator=generator).tolist()
        shift = int(torch.randint(0, 4, (1,), generator=generator)) * 2 & (2 if layout.bits == 6 else 6)
        got = run_floats(unpacking.codes, {"$4": word(codes)}, dtype, 4)
        if unpacking.bits:
            parts = run_floats(unpacking.bits, {"$4": word(bits), "$5": word([shift] * 4)}, dtype, 4)
            got = [a + b for a, b in zip(got, parts, strict=True)]
        pairs = list(zip(codes, bits, strict=True))
        low = [expected_code(type_, code & 15, b >> shift) for code, b in pairs]
        further = shift + (1 if layout.bits == 5 else 4)
        high = [expected_code(type_, code >> 4, b >> further) for code, b in pairs]
        assert got == [code + unpacking.bias for code in low + high]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_ptx_of_signed_bytes(monkeypatch, dtype):
    unpacking = unpacking_on_gpus(monkeypatch, GGMLType.Q8_0, dtype)
    for first in range(-128, 128, 4):
        codes = list(range(first, first + 4))
        values = {"$2": word([code & 255 for code in codes])}
        assert run_floats(unpacking.codes, values, dtype, 2) == codes


def unpacking_on_gpus(monkeypatch: pytest.MonkeyPatch, type_: GGMLType, dtype: torch.dtype) -> Unpacking:
    monkeypatch.setattr(unpack, "interprets", lambda: False)
    return unpack.choose_unpacking(LAYOUTS[type_], dtype)


def expected_code(type_: GGMLType, nibble: int, bits: int) -> int:
    layout = LAYOUTS[type_]
    if layout.table:
        return IQ4_LEVELS[nibble]
    return nibble + ((bits & (1 << layout.bits - 4) - 1) << 4) - layout.offset


def run_floats(text: str, values: dict[str, int], dtype: torch.dtype, n_words: int) -> list[float]:
    """What PTX leaves in $0 to $(n_words - 1)."""
    registers = run_ptx(text, values)
    raw = b"".join(registers[f"${i}"].to_bytes(4, "little") for i in range(n_words))
    return torch.frombuffer(bytearray(raw), dtype=dtype).tolist()


def word(numbers: list[int]) -> int:
    return int.from_bytes(bytes(numbers), "little")
