from __future__ import annotations

import numpy as np
import pytest
from trimaran.errors import KernelError
from trimaran_kernels import ThreadPool, linear

Q4_K = 12


def run(pool, weight_type, raw, x, rows, isa):
    out = np.full((len(x), rows), np.nan, np.float32)
    linear(pool, weight_type.id, raw, x, out, isa)
    return out


def assert_close(got, weights, x):
    """Within float32 rounding of a sum: scaled by the sum of magnitudes, since products may cancel."""
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    scale = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    assert np.all(np.abs(got - expected) <= 1e-6 * scale + 1e-30)


def test_matches_float64(weight_type, isa, pool, rng):
    columns, rows = 512, 21
    raw = weight_type.random(rng, rows, columns)
    weights = weight_type.decode(raw, rows, columns)
    for n in (0, 1, 2, 3, 4, 33):
        x = rng.standard_normal((n, columns), dtype=np.float32)
        assert_close(run(pool, weight_type, raw, x, rows, isa), weights, x)


@pytest.mark.parametrize("rows", [0, 1, 3, 8, 16, 17, 100])
def test_any_number_of_rows(type_named, isa, pool, rng, rows):
    q6 = type_named("Q6_K")
    raw = q6.random(rng, rows, 256)
    x = rng.standard_normal((5, 256), dtype=np.float32)
    weights = q6.decode(raw, rows, 256) if rows else np.zeros((0, 256), np.float32)
    assert_close(run(pool, q6, raw, x, rows, isa), weights, x)


@pytest.mark.parametrize(
    ("name", "columns"), [("Q8_0", 96), ("Q5_0", 1408), ("F32", 1), ("F16", 13), ("BF16", 300)]
)
def test_row_lengths_of_small_blocks(type_named, isa, pool, rng, name, columns):
    kind = type_named(name)
    raw = kind.random(rng, 19, columns)
    x = rng.standard_normal((4, columns), dtype=np.float32)
    assert_close(run(pool, kind, raw, x, 19, isa), kind.decode(raw, 19, columns), x)


def test_a_row_depends_on_itself_only(type_named, isa, pool, rng):
    q4 = type_named("Q4_K")
    raw = q4.random(rng, 40, 768)
    x = rng.standard_normal((70, 768), dtype=np.float32)
    together = run(pool, q4, raw, x, 40, isa)
    alone = ThreadPool(pool.cpus[:1])
    for i in (0, 1, 31, 32, 69):
        np.testing.assert_array_equal(run(alone, q4, raw, x[i : i + 1], 40, isa)[0], together[i])


def test_few_tokens_in_runs_of_tiles(type_named, pool, rng):
    """A thread takes runs of tiles, of which the last is shorter; of many tokens single tiles."""
    q8 = type_named("Q8_0")
    rows = 16 * 52 + 5
    raw = q8.random(rng, rows, 64)
    x = rng.standard_normal((9, 64), dtype=np.float32)
    together = run(pool, q8, raw, x, rows, "auto")
    assert_close(together, q8.decode(raw, rows, 64), x)
    for threads in range(1, len(pool.cpus) + 1):
        some = ThreadPool(pool.cpus[:threads])
        for n in (1, 3, 8):
            np.testing.assert_array_equal(run(some, q8, raw, x[:n], rows, "auto"), together[:n])


def test_nan_and_infinity_stay_in_their_row(type_named, isa, pool, rng):
    q8 = type_named("Q8_0")
    raw = q8.random(rng, 24, 64)
    x = rng.standard_normal((6, 64), dtype=np.float32)
    clean = run(pool, q8, raw, x, 24, isa)
    x[1, 5], x[4, 63] = np.nan, np.inf
    dirty = run(pool, q8, raw, x, 24, isa)
    assert np.isnan(dirty[1]).all()
    assert not np.isfinite(dirty[4]).any()
    np.testing.assert_array_equal(dirty[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])


def test_accepts_torch_tensors(type_named, pool, rng):
    torch = pytest.importorskip("torch")
    q8 = type_named("Q8_0")
    raw = q8.random(rng, 8, 64)
    x = rng.standard_normal((3, 64), dtype=np.float32)
    out = torch.empty(3, 8)
    linear(pool, q8.id, torch.from_numpy(raw), torch.from_numpy(x), out)
    np.testing.assert_array_equal(out.numpy(), run(pool, q8, raw, x, 8, "auto"))


def test_accepts_read_only_weights(type_named, pool, rng):
    q8 = type_named("Q8_0")
    raw = q8.random(rng, 8, 64)
    raw.setflags(write=False)
    x = np.ones((1, 64), np.float32)
    assert_close(run(pool, q8, raw, x, 8, "auto"), q8.decode(raw, 8, 64), x)


def read_only(array):
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw": np.zeros(8 * 144 - 1, np.uint8)}, "raw: 1151 bytes, but 8 × 256 weights of Q4_K need 1152"),
        ({"x": np.zeros((2, 255), np.float32)}, "raw: 255 columns"),
        ({"x": np.zeros((2, 0), np.float32)}, "raw: 0 columns"),
        ({"x": np.zeros((2, 256))}, "x: need an array of float32"),
        ({"x": np.zeros((256, 2), np.float32).T}, "x: need a C-contiguous array"),
        ({"x": np.zeros(256, np.float32)}, "x: need 2 dimensions, have 1"),
        ({"out": np.zeros((3, 8), np.float32)}, "out: need length 2 in dimension 0, have 3"),
        ({"out": read_only(np.zeros((2, 8), np.float32))}, "out: is read-only"),
        ({"ggml_type": 9}, "ggml_type: GGUF type 9 is not supported"),
    ],
)
def test_bad_input_is_named(pool, change, message):
    arguments = {
        "ggml_type": Q4_K,
        "raw": np.zeros(8 * 144, np.uint8),
        "x": np.zeros((2, 256), np.float32),
        "out": np.zeros((2, 8), np.float32),
        **change,
    }
    with pytest.raises(KernelError, match=message):
        linear(pool, **arguments)


def test_misaligned_activations_are_refused(pool):
    x = np.zeros(256 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(1, 256)
    with pytest.raises(KernelError, match="x: need an aligned array"):
        linear(pool, Q4_K, np.zeros(144, np.uint8), x, np.zeros((1, 1), np.float32))
