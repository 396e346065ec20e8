"""Packed weights with int8 activations: all instruction sets agree to the bit, and with float64 closely."""

from __future__ import annotations

import numpy as np
import pytest
from trimaran.errors import KernelError
from trimaran.gguf import GGMLType
from trimaran.gguf.quantize import quantize
from trimaran_kernels import ExpertEngine, ThreadPool, built_isas, detect_isa, linear, pack, packed_bytes

GROUP = 16
PACKED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]


@pytest.fixture(params=PACKED)
def packed_type(request, type_named):
    return type_named(request.param)


@pytest.fixture(params=[isa for isa in built_isas() if isa != "generic"])
def fast_isa(request):
    return request.param


def pack_matrix(pool, kind, raw, rows, columns):
    out = np.full(packed_bytes(kind.id, rows, columns), 0xAA, np.uint8)
    pack(pool, kind.id, raw, rows, columns, out)
    return out


def multiply(pool, kind, packed, x, rows, isa):
    out = np.full((len(x), rows), np.nan, np.float32)
    linear(pool, kind.id, packed, x, out, isa, packed=True)
    return out


def rounded(x):
    """Activations as the kernels see them: 16 columns share the best of eight scales near max |x| / 127.

    In float32 and in the kernels' order, since two scales may be equally good up to rounding.
    """
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    largest[largest == 0] = 1
    tries, errors = [], []
    for levels in np.arange(127, 119, -1, dtype=np.float32):
        steps = groups * (levels / largest)
        codes = np.rint(steps)
        squares = (steps - codes) ** 2
        sums = squares[..., :8] + squares[..., 8:]
        while sums.shape[-1] > 1:
            sums = sums[..., 0::2] + sums[..., 1::2]
        errors.append(sums * (1 / (levels * levels)))
        tries.append(codes.astype(np.float64) * (largest / levels))
    best = np.stack(errors).argmin(0)
    return np.take_along_axis(np.stack(tries), best[None], 0)[0].reshape(x.shape)


def assert_close(got, weights, x):
    """Within float32 rounding, scaled by the sum of magnitudes, since products may cancel."""
    expected = x @ weights.astype(np.float64).T
    scale = np.abs(x) @ np.abs(weights).astype(np.float64).T
    assert np.all(np.abs(got - expected) <= 2e-6 * scale + 1e-30)


def odd_columns(kind):
    return 3 * kind.block_size


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 33])
def test_matches_float64_with_rounded_activations(packed_type, pool, rng, n):
    rows, columns = 21, odd_columns(packed_type)
    raw = packed_type.random(rng, rows, columns)
    packed = pack_matrix(pool, packed_type, raw, rows, columns)
    x = rng.standard_normal((n, columns), dtype=np.float32)
    got = multiply(pool, packed_type, packed, x, rows, "auto")
    assert_close(got, packed_type.decode(raw, rows, columns), rounded(x) if n else x)


def test_instruction_sets_agree_to_the_bit(packed_type, fast_isa, pool, rng):
    for rows, columns, n in ((1, packed_type.block_size, 1), (40, 1024, 7), (16, 2048, 70)):
        raw = packed_type.random(rng, rows, columns)
        packed = pack_matrix(pool, packed_type, raw, rows, columns)
        x = rng.standard_normal((n, columns), dtype=np.float32)
        x[:, : columns // 2] *= 100
        expected = multiply(pool, packed_type, packed, x, rows, "generic")
        np.testing.assert_array_equal(multiply(pool, packed_type, packed, x, rows, fast_isa), expected)


@pytest.mark.parametrize("columns", [32, 96, 128, 160, 416])
def test_any_activations_are_rounded_alike(type_named, fast_isa, pool, rng, columns):
    """Halves of every kind side by side, in every number: instruction sets take several at a time."""
    kind, rows = type_named("Q8_0"), 16
    raw = kind.random(rng, rows, columns)
    packed = pack_matrix(pool, kind, raw, rows, columns)
    halves = rng.standard_normal((400, columns // 16, 16), dtype=np.float32)
    halves *= rng.choice(np.float32([0, 1e-38, 1e-31, 1e-29, 1, 1, 1e10, 1e30]), (400, columns // 16, 1))
    halves[::3] = np.rint(halves[::3] * 4)  # ties between levels
    halves[::7, 0] = 1
    x = halves.reshape(400, columns)
    x[::50, columns // 2], x[::80, 3] = np.nan, -np.inf
    expected = multiply(pool, kind, packed, x, rows, "generic")
    assert np.isnan(expected[0]).all()
    assert np.isfinite(expected[1]).all()
    np.testing.assert_array_equal(multiply(pool, kind, packed, x, rows, fast_isa), expected)


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("sign", [-1, 1, None])
def test_extreme_codes_do_not_overflow(packed_type, isa, pool, rng, byte, sign):
    rows, columns = 16, 512
    raw = packed_type.random(rng, rows, columns)
    blocks = raw.reshape(-1, packed_type.type_size)
    with_scales = blocks.copy()
    blocks[:] = byte
    keep = 4 if packed_type.name in ("Q4_K", "Q5_K", "Q4_1", "Q5_1") else 2
    where = slice(0, keep) if packed_type.name not in ("Q2_K", "Q3_K", "Q6_K") else slice(-4, None)
    blocks[:, where] = with_scales[:, where]
    packed = pack_matrix(pool, packed_type, raw, rows, columns)
    x = np.ones((5, columns), np.float32) if sign is None else np.full((5, columns), sign, np.float32)
    if sign is None:
        x[:, 1::2] = -1
    got = multiply(pool, packed_type, packed, x, rows, isa)
    assert_close(got, packed_type.decode(raw, rows, columns), rounded(x))


def test_a_row_depends_on_itself_only(packed_type, pool, rng):
    raw = packed_type.random(rng, 40, 768)
    packed = pack_matrix(pool, packed_type, raw, 40, 768)
    x = rng.standard_normal((70, 768), dtype=np.float32)
    together = multiply(pool, packed_type, packed, x, 40, "auto")
    alone = ThreadPool(pool.cpus[:1])
    for i in (0, 1, 31, 32, 69):
        np.testing.assert_array_equal(
            multiply(alone, packed_type, packed, x[i : i + 1], 40, "auto")[0], together[i]
        )


def test_not_finite_activations_stay_in_their_row(type_named, isa, pool, rng):
    kind = type_named("Q4_K")
    raw = kind.random(rng, 24, 512)
    packed = pack_matrix(pool, kind, raw, 24, 512)
    x = rng.standard_normal((6, 512), dtype=np.float32)
    clean = multiply(pool, kind, packed, x, 24, isa)
    x[1, 5], x[4, 63] = np.nan, np.inf
    dirty = multiply(pool, kind, packed, x, 24, isa)
    assert np.isnan(dirty[[1, 4]]).all()
    np.testing.assert_array_equal(dirty[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e20, 1e35])
def test_any_magnitude(type_named, isa, pool, rng, size):
    kind = type_named("Q8_0")
    raw = kind.random(rng, 16, 64)
    packed = pack_matrix(pool, kind, raw, 16, 64)
    x = (rng.uniform(-1, 1, (3, 64)) * size).astype(np.float32)
    got = multiply(pool, kind, packed, x, 16, isa)
    if size < 1e-30:
        np.testing.assert_array_equal(got, 0)
    else:
        assert_close(got, kind.decode(raw, 16, 64), rounded(x))


def test_packed_size_is_near_the_file_s(packed_type):
    file_size = 512 * 7168 // packed_type.block_size * packed_type.type_size
    assert file_size <= packed_bytes(packed_type.id, 512, 7168) <= 1.04 * file_size


def test_types_without_packed_layout(type_named, pool):
    assert packed_bytes(type_named("IQ2_XXS").id, 16, 256) is None
    assert packed_bytes(type_named("Q4_K").id, 16, 100) is None
    with pytest.raises(KernelError, match="ggml_type: IQ2_XXS has no packed layout"):
        pack(pool, type_named("IQ2_XXS").id, np.zeros(66, np.uint8), 1, 256, np.zeros(66, np.uint8))


@pytest.mark.parametrize("missing", [1, 64])
def test_wrong_sizes_are_named(type_named, pool, missing):
    kind = type_named("Q4_K")
    raw, size = np.zeros(16 * 144, np.uint8), packed_bytes(kind.id, 16, 256)
    with pytest.raises(KernelError, match=f"out: need length {size} in dimension 0"):
        pack(pool, kind.id, raw, 16, 256, np.zeros(size - missing, np.uint8))
    with pytest.raises(KernelError, match="raw: 2303 bytes"):
        pack(pool, kind.id, raw[:-1], 16, 256, np.zeros(size, np.uint8))
    with pytest.raises(KernelError, match=r"raw: .* packed matrices of Q4_K need"):
        linear(
            pool,
            kind.id,
            np.zeros(size - missing, np.uint8),
            np.zeros((1, 256), np.float32),
            np.zeros((1, 16), np.float32),
            packed=True,
        )


class PackedExperts:
    """One layer's experts: packed as the engine takes them, dense as the reference computes."""

    hidden, intermediate, n_experts, top_k = 512, 768, 5, 3

    def __init__(self, pool, rng, kinds, packed=(True, True, True)):
        shapes = [
            (self.intermediate, self.hidden),
            (self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        ]
        self.dense, self.matrices = [], []
        for kind, shape, is_packed in zip(kinds, shapes, packed, strict=True):
            # Weights as models have them: normal, and such that vectors keep their length.
            values = rng.standard_normal((self.n_experts, *shape), dtype=np.float32) / np.sqrt(shape[1])
            raws = [quantize(GGMLType(kind.id), matrix.astype(np.float32)).reshape(-1) for matrix in values]
            self.dense.append([kind.decode(raw, *shape).astype(np.float64) for raw in raws])
            parts = [pack_matrix(pool, kind, raw, *shape) if is_packed else raw for raw in raws]
            self.matrices.append((kind.id, np.concatenate(parts), is_packed))

    def engine(self, pool, isa="auto", first=0, stop=None):
        stop = self.n_experts if stop is None else stop
        engine = ExpertEngine(pool, self.hidden, self.intermediate, self.n_experts, self.top_k, isa=isa)
        parts = []
        for kind, data, is_packed in self.matrices:
            size = len(data) // self.n_experts
            parts.append((kind, data[first * size : stop * size], is_packed))
        engine.add_layer(0, *parts, first, stop - first)
        return engine

    def call(self, rng, n):
        x = rng.standard_normal((n, self.hidden), dtype=np.float32)
        ids = rng.permuted(np.tile(np.arange(self.n_experts, dtype=np.int32), (n, 1)), axis=1)
        return x, np.ascontiguousarray(ids[:, : self.top_k]), rng.random((n, self.top_k), dtype=np.float32)

    def reference(self, x, ids, weights):
        y = np.zeros(x.shape)
        for t, row in enumerate(x.astype(np.float64)):
            for e, weight in zip(ids[t], weights[t], strict=True):
                gate = self.dense[0][e] @ row
                y[t] += weight * (self.dense[2][e] @ (gate / (1 + np.exp(-gate)) * (self.dense[1][e] @ row)))
        return y


def forward(engine, x, ids, weights):
    y = np.full_like(x, 77)
    assert engine.forward(0, x, ids, weights, y) == 0
    return y


def assert_accurate(got, expected):
    """The stated error of int8 activations."""
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    cosine = (got * expected).sum() / np.linalg.norm(got) / np.linalg.norm(expected)
    assert error <= 1e-2
    assert cosine >= 0.9999


def test_experts_of_every_type(packed_type, pool, rng):
    experts = PackedExperts(pool, rng, [packed_type] * 3)
    call = experts.call(rng, 9)
    assert_accurate(forward(experts.engine(pool), *call), experts.reference(*call))


@pytest.fixture
def without_tiles(monkeypatch):
    """Matrix tiles round to bf16: results are near those of other instruction sets, not the same."""
    monkeypatch.setenv("TRIMARAN_ISA", "avx512_vnni")


@pytest.mark.usefixtures("without_tiles")
def test_experts_agree_between_instruction_sets(type_named, fast_isa, pool, rng):
    experts = PackedExperts(pool, rng, [type_named(name) for name in ("Q4_K", "Q5_K", "Q6_K")])
    call = experts.call(rng, 40)
    expected = forward(experts.engine(pool, "generic"), *call)
    np.testing.assert_array_equal(forward(experts.engine(pool, fast_isa), *call), expected)


@pytest.mark.parametrize("packed", [(True, False, True), (False, True, False), (True, True, False)])
def test_layouts_may_be_mixed(type_named, pool, rng, packed):
    experts = PackedExperts(pool, rng, [type_named("Q4_K")] * 3, packed)
    call = experts.call(rng, 6)
    assert_accurate(forward(experts.engine(pool), *call), experts.reference(*call))


@pytest.mark.usefixtures("without_tiles")
def test_a_token_does_not_depend_on_its_batch(type_named, pool, rng):
    experts = PackedExperts(pool, rng, [type_named("Q4_K")] * 3)
    x, ids, weights = experts.call(rng, 50)
    together = forward(experts.engine(pool), x, ids, weights)
    alone = experts.engine(ThreadPool(pool.cpus[:1]))
    for t in (0, 17, 49):
        one = slice(t, t + 1)
        np.testing.assert_array_equal(forward(alone, x[one], ids[one], weights[one])[0], together[t])


def test_an_exact_engine_takes_packed_weights_only_where_tiles_multiply_them(type_named, pool, rng):
    experts = PackedExperts(pool, rng, [type_named("Q4_K")] * 3)
    engine = ExpertEngine(pool, 512, 768, 5, 3, isa="avx512_vnni", exact=True)
    with pytest.raises(KernelError, match="exact: packed weights are multiplied exactly by matrix tiles"):
        engine.add_layer(0, *experts.matrices, 0, 5)


@pytest.mark.skipif(detect_isa() != "amx", reason="needs matrix tiles")
def test_exact_tiles_of_every_type(packed_type, pool, rng):
    experts = PackedExperts(pool, rng, [packed_type] * 3)
    x, ids, weights = experts.call(rng, 19)
    engine = ExpertEngine(pool, 512, 768, 5, 3, exact=True)
    engine.add_layer(0, *experts.matrices, 0, 5)
    got, expected = forward(engine, x, ids, weights), experts.reference(x, ids, weights)
    assert np.linalg.norm(got - expected) <= 2e-3 * np.linalg.norm(expected)
    np.testing.assert_array_equal(forward(engine, x[7:8], ids[7:8], weights[7:8])[0], got[7])


def test_shards_add_up(type_named, pool, rng):
    experts = PackedExperts(pool, rng, [type_named("Q5_K")] * 3)
    call = experts.call(rng, 12)
    whole = forward(experts.engine(pool), *call)
    parts = sum(forward(experts.engine(pool, "auto", a, b), *call) for a, b in ((0, 2), (2, 5)))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5 * np.abs(whole).max())
