"""Attention over the paged cache against its definition in float64, one query and one head at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import gguf
import numpy as np
import pytest
import trimaran_kernels
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from trimaran.errors import KernelError
from trimaran_kernels import LatentMaps, LatentPages, Mla, ThreadPool, store_latents, usable_cpus
from trimaran_kernels._native import latent_entry_bytes

Floats = NDArray[np.float32]
ISAS = [name for name in trimaran_kernels.built_isas() if trimaran_kernels.detect_isa(name) == name]
NO_TILES = "avx512_vnni"  # this, or the next that the machine has
POOL = ThreadPool(usable_cpus(1))


@dataclass(frozen=True)
class Dims:
    heads: int
    nope: int
    rope: int
    latent: int
    value: int
    page: int = 64

    @property
    def scale(self) -> float:
        return float((self.nope + self.rope) ** -0.5)


ODD = Dims(3, 10, 6, 36, 13, page=5)
SMALL = Dims(4, 16, 8, 32, 16)
LITE = Dims(16, 128, 64, 512, 128)
ONE = Dims(1, 2, 2, 1, 1, page=1)
MANY = Dims(70, 9, 4, 40, 33, page=16)


@dataclass
class Case:
    """Requests with their caches, scattered over one pool of pages; the last `length` tokens are new."""

    dims: Dims
    lengths: list[int]
    positions: list[int]
    kind: str = "f32"
    magnitude: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        d, self.random = self.dims, np.random.default_rng(self.seed)
        self.k_b = self.normal(d.heads, d.nope, d.latent) / d.latent**0.5
        self.v_b = self.normal(d.heads, d.latent, d.value) / d.latent**0.5
        self.blocks: list[NDArray[np.uint8] | Floats] | None = None
        self.weight = 1 + self.normal(d.latent) / 10
        needed = [-(-(n + p) // d.page) for n, p in zip(self.lengths, self.positions, strict=True)]
        self.scattered = self.random.permutation(sum(needed) + 2).astype(np.int32)
        self.tables = np.split(self.scattered[: sum(needed)], np.cumsum(needed)[:-1])
        n_pages = len(self.scattered)
        self.raw = np.full(n_pages * d.page * latent_entry_bytes(self.kind, d.latent, d.rope), 255, np.uint8)
        self.pages = LatentPages(self.raw, self.kind, d.latent, d.rope, d.page)
        n = sum(self.lengths)
        self.q = self.normal(n, d.heads * (d.nope + d.rope)) * np.float32(self.magnitude)
        self.angles = self.random.uniform(-3, 3, (n, d.rope // 2)).astype(np.float32)
        self.entries = [
            self.fill(table, count) for table, count in zip(self.tables, self.counts, strict=True)
        ]

    @property
    def counts(self) -> list[int]:
        return [n + p for n, p in zip(self.lengths, self.positions, strict=True)]

    def quantise_maps(self) -> None:
        """To Q8_0, as a file with a tensor for each half has them; `k_b` and `v_b` become what that means."""
        raw = [
            gguf.quantize(half.transpose(0, 2, 1), GGMLQuantizationType.Q8_0) for half in (self.k_b, self.v_b)
        ]
        self.k_b, self.v_b = map(dequantised, raw)
        self.blocks = raw

    def normal(self, *shape: int) -> Floats:
        return self.random.standard_normal(shape, dtype=np.float32)

    def fill(self, table: NDArray[np.int32], count: int) -> NDArray[np.float64]:
        """Store the tokens of a request; what the cache should give back, up to its rounding."""
        d = self.dims
        kv, angles = self.normal(count, d.latent + d.rope), self.random.uniform(-3, 3, (count, d.rope // 2))
        angles = angles.astype(np.float32)
        slots = table[np.arange(count) // d.page] * d.page + np.arange(count, dtype=np.int32) % d.page
        store_latents(POOL, self.pages, kv, self.weight, 1e-6, np.cos(angles), np.sin(angles), slots)
        latent = kv[:, : d.latent].astype(np.float64)
        latent = latent / np.sqrt((latent**2).mean(-1, keepdims=True) + 1e-6) * self.weight
        return np.concatenate([latent, rotated(kv[:, d.latent :], angles)], -1)

    def segments(self, which: list[int], absorbed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        rows, pages, row, page = [], [], 0, 0
        for i, (n, p) in enumerate(zip(self.lengths, self.positions, strict=True)):
            if i in which:
                rows.append([row, n, p, page, absorbed])
                pages.append(self.tables[i])
                page += len(self.tables[i])
            row += n
        return np.array(rows, np.int32).reshape(-1, 5), np.concatenate([*pages, np.zeros(0, np.int32)])

    def run(
        self,
        *,
        absorbed: int = 1,
        threads: int = 1,
        isa: str = "auto",
        half: bool = False,
        which: list[int] | None = None,
    ) -> Floats:
        """[n, heads × value]; NaN where no segment is."""
        d = self.dims
        mla = Mla(ThreadPool(usable_cpus(threads)), d.heads, d.nope, d.rope, d.latent, d.value, d.scale, isa)
        out = np.full((len(self.q), d.heads * d.value), np.nan, np.float32)
        table = self.segments(list(range(len(self.lengths))) if which is None else which, absorbed)
        cos, sin = np.cos(self.angles), np.sin(self.angles)
        maps = LatentMaps(*(self.blocks or (self.k_b, self.v_b)), half)
        mla.attend(maps, self.q, cos, sin, self.pages, *table, out)
        return out

    def expected(self) -> NDArray[np.float64]:
        d = self.dims
        q = self.q.reshape(-1, d.heads, d.nope + d.rope).astype(np.float64)
        out, row = np.empty((len(q), d.heads, d.value)), 0
        for entries, n, p in zip(self.entries, self.lengths, self.positions, strict=True):
            for i in range(n):
                seen = entries[: p + i + 1]
                for head in range(d.heads):
                    keys = np.concatenate([seen[:, : d.latent] @ self.k_b[head].T, seen[:, d.latent :]], -1)
                    turned = rotated(q[row, head, None, d.nope :], self.angles[row, None])[0]
                    scores = keys @ np.concatenate([q[row, head, : d.nope], turned]) * d.scale
                    weights = np.exp(scores - scores.max())
                    out[row, head] = weights / weights.sum() @ (seen[:, : d.latent] @ self.v_b[head])
                row += 1
        return out.reshape(len(q), -1)


def dequantised(half: NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(gguf.dequantize(half, GGMLQuantizationType.Q8_0).transpose(0, 2, 1))


def rotated(x: NDArray[np.floating], angles: Floats) -> NDArray[np.float64]:
    cos, sin = np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, odd * cos + even * sin], -1).reshape(x.shape)


def relative(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


CASES = [
    (ONE, [1], [0], 1.0),
    (ONE, [3, 1], [0, 9], 1.0),
    (ODD, [1, 7, 1], [0, 0, 4], 1.0),
    (ODD, [33, 1], [5, 290], 1.0),
    (SMALL, [1, 1, 1, 1], [63, 64, 127, 128], 1.0),
    (SMALL, [64, 65], [0, 64], 1.0),
    (SMALL, [140], [1], 1.0),
    (MANY, [2, 40], [130, 0], 1.0),
    (LITE, [1, 5], [200, 0], 1.0),
    (SMALL, [5, 1], [70, 200], 300.0),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("absorbed", [0, 1])
@pytest.mark.parametrize(("dims", "lengths", "positions", "magnitude"), CASES, ids=str)
def test_both_forms_follow_the_definition(
    dims: Dims, lengths: list[int], positions: list[int], magnitude: float, absorbed: int, isa: str
) -> None:
    case = Case(dims, lengths, positions, magnitude=magnitude)
    bound = 2e-6 if magnitude == 1 else 2e-4  # scores in the hundreds have errors of their own
    assert relative(case.run(absorbed=absorbed, isa=isa), case.expected()) < bound


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["bf16", "fp8", "int8"])
@pytest.mark.parametrize("dims", [SMALL, ODD, replace(SMALL, latent=300)])
def test_other_formats_are_within_their_error(dims: Dims, kind: str, isa: str) -> None:
    case = Case(dims, [9, 1], [60, 300], kind=kind)
    bound = {"bf16": 0.008, "fp8": 0.08, "int8": 0.02}[kind]
    for absorbed in (0, 1):
        assert relative(case.run(absorbed=absorbed, isa=isa), case.expected()) < bound


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8", "int8"])
def test_instruction_sets_agree_to_rounding(kind: str) -> None:
    case = Case(LITE, [3], [70], kind=kind)
    for absorbed in (0, 1):
        results = [case.run(absorbed=absorbed, isa=isa) for isa in ISAS]
        for result in results[1:]:
            assert relative(result, results[0]) < 2e-6


@pytest.mark.parametrize("absorbed", [0, 1])
@pytest.mark.parametrize("dims", [SMALL, ODD, MANY])
def test_a_request_gets_the_same_bits_alone_and_in_a_batch_and_on_any_number_of_threads(
    dims: Dims, absorbed: int
) -> None:
    case = Case(dims, [1, 50, 1, 7], [700, 3, 0, 140])
    together = case.run(absorbed=absorbed)
    assert np.array_equal(together, case.run(absorbed=absorbed, threads=2))
    start = 0
    for i, n in enumerate(case.lengths):
        alone = case.run(absorbed=absorbed, which=[i], threads=1 + i % 2)
        rows = slice(start, start + n)
        assert np.array_equal(alone[rows], together[rows])
        assert np.isnan(np.delete(alone, np.s_[rows], 0)).all()
        start += n


@pytest.mark.parametrize("absorbed", [0, 1])
def test_chunks_of_a_prompt_give_the_bits_of_the_whole(absorbed: int) -> None:
    case = Case(SMALL, [300], [0])
    whole = case.run(absorbed=absorbed)
    for first, n in [(0, 1), (1, 63), (64, 100), (164, 136)]:
        q, angles = case.q[first : first + n], case.angles[first : first + n]
        part = Case(SMALL, [n], [first])
        part.pages, part.tables, part.k_b, part.v_b = case.pages, case.tables, case.k_b, case.v_b
        part.q, part.angles = q, angles
        assert np.array_equal(part.run(absorbed=absorbed), whole[first : first + n])


def test_mixed_forms_in_one_call() -> None:
    case = Case(SMALL, [40, 1, 30], [0, 100, 9])
    rows, table = case.segments([0, 1, 2], 0)
    rows[1, 4] = 1
    d = case.dims
    mla = Mla(POOL, d.heads, d.nope, d.rope, d.latent, d.value, d.scale)
    out = np.empty((71, d.heads * d.value), np.float32)
    maps = LatentMaps(case.k_b, case.v_b, False)
    mla.attend(maps, case.q, np.cos(case.angles), np.sin(case.angles), case.pages, rows, table, out)
    assert relative(out, case.expected()) < 2e-6


def test_passes_of_bounded_memory_give_the_same() -> None:
    """More (query, head) rows than one pass takes: 300 × 70 > 16384."""
    case = Case(replace(MANY, heads=70), [300], [0])
    assert relative(case.run(absorbed=1), case.run(absorbed=0)) < 2e-6


def test_maps_in_16_bits_take_half_and_cost_little() -> None:
    case = Case(LITE, [2, 9], [100, 0])
    for absorbed in (0, 1):
        exact = case.run(absorbed=absorbed)
        assert 0 < relative(case.run(absorbed=absorbed, half=True, isa=NO_TILES), exact) < 2.5e-4
        # Where there are tiles, the expanded form rounds to bf16.
        assert 0 < relative(case.run(absorbed=absorbed, half=True), exact) < (2.5e-4 if absorbed else 8e-3)
    full = LatentMaps(case.k_b, case.v_b, False).nbytes
    assert full == 4 * 2 * 16 * 128 * 512
    assert LatentMaps(case.k_b, case.v_b, True).nbytes == full // 2


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("absorbed", [0, 1])
@pytest.mark.parametrize("dims", [replace(SMALL, nope=32), Dims(3, 96, 6, 64, 13, page=5), LITE])
def test_maps_in_blocks_give_the_bits_of_their_values(dims: Dims, absorbed: int, isa: str) -> None:
    """With 1 to 8 queries in one pass: some take the codes as they are, more have them widened."""
    for n in (1, 2, 3, 6, 8):
        case = Case(dims, [n], [40], seed=n)
        case.quantise_maps()
        got, case.blocks = case.run(absorbed=absorbed, isa=isa), None
        assert np.array_equal(got, case.run(absorbed=absorbed, isa=isa))
        assert relative(got, case.expected()) < 2e-6


def test_one_half_may_be_in_blocks() -> None:
    case = Case(replace(SMALL, nope=32), [3], [10])
    case.quantise_maps()
    assert case.blocks is not None
    k_b, v_b = case.blocks
    expected = case.run()
    case.blocks = [k_b, case.v_b]
    assert np.array_equal(case.run(), expected)
    case.blocks = [case.k_b, v_b]
    assert np.array_equal(case.run(), expected)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 6e-8])
def test_extreme_scales_of_blocks(scale: float) -> None:
    """The largest code there is, -128, is none that gguf writes; infinity times a code of 0 is NaN."""
    case = Case(replace(SMALL, nope=32), [1], [3])
    case.quantise_maps()
    assert case.blocks is not None
    for blocks in case.blocks:
        blocks[1, 2, :2] = np.float16([scale]).view(np.uint8)
        blocks[1, 2, 2:4] = 128, 0
    with np.errstate(invalid="ignore"):
        case.k_b, case.v_b = map(dequantised, case.blocks)
    for absorbed in (0, 1):
        blocks, got = case.blocks, case.run(absorbed=absorbed)
        case.blocks = None
        assert np.array_equal(got, case.run(absorbed=absorbed), equal_nan=True)
        case.blocks = blocks


def test_maps_in_blocks_take_what_the_file_does() -> None:
    case = Case(LITE, [1], [0])
    case.quantise_maps()
    assert case.blocks is not None
    assert LatentMaps(*case.blocks, True).nbytes == sum(half.nbytes for half in case.blocks)
    k_b, v_b = case.blocks
    with pytest.raises(KernelError, match="v_b: maps latents of 512, k_b those of 511"):
        LatentMaps(np.ascontiguousarray(k_b[:, 1:]), v_b, True)
    with pytest.raises(KernelError, match="v_b: need length 16 in dimension 0, have 15"):
        LatentMaps(k_b, v_b[1:], True)
    with pytest.raises(KernelError, match="k_b: rows of 135 bytes are no whole blocks of Q8_0"):
        LatentMaps(np.ascontiguousarray(k_b[..., 1:]), v_b, True)
    with pytest.raises(KernelError, match="k_b: empty or too large"):
        LatentMaps(k_b[:0], v_b[:0], True)


def test_16_bit_maps_round_as_numpy_does() -> None:
    """Through an identity: a head's value is the (only) latent times v_b."""
    values = np.float32([1.0, 1 / 3, 65503.0, 65519.0, 2**-14, 2**-24, 1.5 * 2**-25, 2**-26, -1e-6, 0.1])
    v_b = values.reshape(1, 1, -1).copy()
    dims = Dims(1, 2, 2, 1, values.size)
    pages = LatentPages(np.zeros(64 * 3 * 4, np.uint8), "f32", 1, 2, 64)
    angle = np.zeros((1, 1), np.float32)
    store_latents(
        POOL,
        pages,
        np.float32([[1, 0, 0]]),
        np.ones(1, np.float32),
        0.0,
        np.cos(angle),
        np.sin(angle),
        np.zeros(1, np.int32),
    )
    mla = Mla(POOL, 1, 2, 2, 1, dims.value, 1.0)
    out = np.empty((1, dims.value), np.float32)
    rows, table = np.int32([[0, 1, 0, 0, 1]]), np.zeros(1, np.int32)
    maps = LatentMaps(np.zeros((1, 2, 1), np.float32), v_b, True)
    mla.attend(maps, np.zeros((1, 4), np.float32), np.cos(angle), np.sin(angle), pages, rows, table, out)
    assert np.array_equal(out[0], values.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8", "int8"])
@pytest.mark.parametrize("absorbed", [0, 1])
def test_a_nan_in_the_cache_shows_and_stays_within_its_request(kind: str, absorbed: int) -> None:
    case = Case(SMALL, [2, 1], [10, 90], kind=kind)
    before = case.run(absorbed=absorbed)
    kv = np.full((1, SMALL.latent + SMALL.rope), np.nan, np.float32)
    angle = np.zeros((1, SMALL.rope // 2), np.float32)
    slot = np.int32([case.tables[1][0] * SMALL.page + 3])
    store_latents(POOL, case.pages, kv, case.weight, 1e-6, np.cos(angle), np.sin(angle), slot)
    after = case.run(absorbed=absorbed)
    assert np.isnan(after[2]).all()
    assert np.array_equal(after[:2], before[:2])


def test_what_does_not_fit_is_refused() -> None:
    case = Case(SMALL, [2], [70])
    rows, table = case.segments([0], 1)
    mla = Mla(POOL, 4, 16, 8, 32, 16, 1.0)
    maps, out = LatentMaps(case.k_b, case.v_b, False), np.empty((2, 64), np.float32)
    cos = np.ones((2, 4), np.float32)

    def attend(
        rows: NDArray[np.int32] = rows, table: NDArray[np.int32] = table, maps: LatentMaps = maps
    ) -> None:
        mla.attend(maps, case.q, cos, cos, case.pages, rows, table, out)

    attend()
    with pytest.raises(KernelError, match="there is no page 99"):
        attend(table=np.int32([0, 99]))
    with pytest.raises(KernelError, match="page table is too short"):
        attend(table=table[:1])
    with pytest.raises(KernelError, match="rows 1 to 3 of 2"):
        attend(rows=np.int32([[1, 2, 70, 0, 1]]))
    with pytest.raises(KernelError, match="page table is too short for position -1"):
        attend(rows=np.int32([[0, 2, -1, 0, 1]]))
    with pytest.raises(KernelError, match="maps: made for other dimensions"):
        attend(maps=LatentMaps(case.k_b[:3].copy(), case.v_b[:3].copy(), False))
    kv = np.zeros((1, 40), np.float32)
    with pytest.raises(KernelError, match="slots: there is no slot 4096"):
        store_latents(POOL, case.pages, kv, case.weight, 1e-6, cos[:1], cos[:1], np.int32([4096]))
    with pytest.raises(KernelError, match='kind: "q4" is none'):
        LatentPages(case.raw, "q4", 32, 8, 64)
    with pytest.raises(KernelError, match="no whole number of pages"):
        LatentPages(case.raw[:-4], "f32", 32, 8, 64)
    with pytest.raises(KernelError, match="rope: must be even"):
        Mla(POOL, 4, 16, 7, 32, 16, 1.0)
    with pytest.raises(KernelError, match="heads: must be at least 1"):
        Mla(POOL, 0, 16, 8, 32, 16, 1.0)


def test_rms_norm_follows_its_definition() -> None:
    random = np.random.default_rng(0)
    for n, width in [(1, 1), (3, 13), (20, 2048)]:
        x, weight = (
            random.standard_normal((n, width), np.float32) * 9,
            random.standard_normal(width, np.float32),
        )
        out = np.empty_like(x)
        trimaran_kernels.rms_norm(POOL, x, weight, 1e-6, out)
        wide = x.astype(np.float64)
        np.testing.assert_allclose(
            out, wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * weight, rtol=1e-6, atol=1e-6
        )
