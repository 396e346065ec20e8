from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from trimaran.errors import KernelError
from trimaran.wire import Status
from trimaran_kernels import ExpertEngine, ThreadPool, usable_cpus

LAYER = 3


@dataclass
class Experts:
    """Weights of one layer: raw bytes as the engine takes them, and float64 as the reference computes."""

    raw: dict[str, tuple[int, NDArray[np.uint8]]]
    gate: NDArray[np.float64]  # [experts, intermediate, hidden]
    up: NDArray[np.float64]
    down: NDArray[np.float64]  # [experts, hidden, intermediate]

    @property
    def dims(self) -> tuple[int, int, int]:
        n_experts, intermediate, hidden = self.gate.shape
        return hidden, intermediate, n_experts

    def engine(self, pool, isa, top_k, **options) -> ExpertEngine:
        engine = ExpertEngine(pool, *self.dims, top_k, isa=isa, **options)
        engine.add_layer(LAYER, **self.raw, first_expert=0, n_experts=self.dims[2])
        return engine

    def shard(self, pool, top_k, first, n_experts) -> ExpertEngine:
        engine = ExpertEngine(pool, *self.dims, top_k)
        part = {}
        for name, (type_id, raw) in self.raw.items():
            size = len(raw) // self.dims[2]
            part[name] = (type_id, raw[first * size : (first + n_experts) * size])
        engine.add_layer(LAYER, **part, first_expert=first, n_experts=n_experts)
        return engine

    def reference(self, x, ids, weights) -> NDArray[np.float64]:
        y = np.zeros(x.shape, np.float64)
        for token, row in enumerate(x.astype(np.float64)):
            for expert, weight in zip(ids[token], weights[token], strict=True):
                if expert < 0:
                    continue
                gate = self.gate[expert] @ row
                hidden = gate / (1 + np.exp(-gate)) * (self.up[expert] @ row)
                y[token] += weight * (self.down[expert] @ hidden)
        return y


@pytest.fixture
def make_experts(type_named, rng) -> Callable[..., Experts]:
    def make(hidden=256, intermediate=256, n_experts=6, gate="Q4_K", up="Q5_K", down="Q6_K") -> Experts:
        shapes = {
            "gate": (gate, intermediate, hidden),
            "up": (up, intermediate, hidden),
            "down": (down, hidden, intermediate),
        }
        raw, values = {}, {}
        for name, (type_name, rows, columns) in shapes.items():
            kind = type_named(type_name)
            data = kind.random(rng, n_experts * rows, columns)
            raw[name] = (kind.id, data)
            values[name] = (
                kind.decode(data, n_experts * rows, columns)
                .reshape(n_experts, rows, columns)
                .astype(np.float64)
            )
        return Experts(raw, **values)

    return make


@pytest.fixture
def make_call(rng):
    def make(experts: Experts, n: int, top_k: int):
        hidden, _, n_experts = experts.dims
        # Small activations keep SiLU away from its flat ends, where every mistake would look alike.
        x = (rng.standard_normal((n, hidden)) * 0.05).astype(np.float32)
        ids = rng.permuted(np.tile(np.arange(n_experts, dtype=np.int32), (n, 1)), axis=1)[:, :top_k]
        return x, np.ascontiguousarray(ids), rng.random((n, top_k), dtype=np.float32)

    return make


def forward(engine, x, ids, weights):
    y = np.full_like(x, 77)
    assert engine.forward(LAYER, x, ids, weights, y) == Status.OK
    return y


def assert_close(got, expected):
    assert np.abs(got - expected).max(initial=0) <= 2e-5 * np.abs(expected).max(initial=1e-30)


def test_every_type(weight_type, make_experts, make_call, pool, isa):
    name = weight_type.name
    experts = make_experts(gate=name, up=name, down=name)
    call = make_call(experts, 3, 2)
    assert_close(forward(experts.engine(pool, isa, 2), *call), experts.reference(*call))


@pytest.mark.parametrize("n", [0, 1, 2, 33, 100])
def test_token_counts(make_experts, make_call, pool, isa, n):
    experts = make_experts()
    call = make_call(experts, n, 3)
    assert_close(forward(experts.engine(pool, isa, 3), *call), experts.reference(*call))


@pytest.mark.parametrize(
    ("hidden", "intermediate", "down"),
    [(256, 96, "Q8_0"), (512, 1408, "Q5_0"), (256, 32, "IQ4_NL"), (256, 9, "F16")],
)
def test_dims_of_small_blocks(make_experts, make_call, pool, isa, hidden, intermediate, down):
    experts = make_experts(hidden, intermediate, 3, gate="Q4_K", up="IQ4_XS", down=down)
    call = make_call(experts, 5, 2)
    assert_close(forward(experts.engine(pool, isa, 2), *call), experts.reference(*call))


def test_float_dims_that_no_vector_divides(make_experts, make_call, pool, isa):
    experts = make_experts(13, 5, 3, gate="F32", up="BF16", down="F16")
    call = make_call(experts, 7, 3)
    assert_close(forward(experts.engine(pool, isa, 3), *call), experts.reference(*call))


def test_all_tokens_to_one_expert(make_experts, make_call, pool, isa):
    experts = make_experts()
    x, ids, weights = make_call(experts, 40, 1)
    ids[:] = 4
    assert_close(forward(experts.engine(pool, isa, 1), x, ids, weights), experts.reference(x, ids, weights))


def test_an_expert_may_repeat(make_experts, make_call, pool, isa):
    experts = make_experts()
    x, ids, weights = make_call(experts, 4, 3)
    ids[:, 2] = ids[:, 0]
    assert_close(forward(experts.engine(pool, isa, 3), x, ids, weights), experts.reference(x, ids, weights))


def test_result_is_independent_of_batch_and_threads(make_experts, make_call, pool, isa):
    experts = make_experts()
    x, ids, weights = make_call(experts, 70, 3)
    together = forward(experts.engine(pool, isa, 3), x, ids, weights)
    alone = experts.engine(ThreadPool(pool.cpus[:1]), isa, 3)
    for i in (0, 1, 35, 69):
        one = slice(i, i + 1)
        np.testing.assert_array_equal(forward(alone, x[one], ids[one], weights[one])[0], together[i])


def test_few_tokens_in_runs_of_tiles(make_experts, make_call, pool):
    """One thread's items are runs of several tiles, of which the last is shorter."""
    experts = make_experts(hidden=32 * 35, intermediate=32 * 17, gate="Q8_0", up="Q8_0", down="Q8_0")
    x, ids, weights = make_call(experts, 40, 3)
    together = forward(experts.engine(pool, "auto", 3), x, ids, weights)
    assert_close(together, experts.reference(x, ids, weights))
    for threads in range(1, len(pool.cpus) + 1):
        some = experts.engine(ThreadPool(pool.cpus[:threads]), "auto", 3)
        for n in (1, 2, 8):
            np.testing.assert_array_equal(forward(some, x[:n], ids[:n], weights[:n]), together[:n])


def test_bf16_rounds_to_nearest_even(make_experts, make_call, pool, isa):
    torch = pytest.importorskip("torch")
    experts = make_experts()
    engine = experts.engine(pool, isa, 2)
    x, ids, weights = make_call(experts, 9, 2)
    x_bf16 = torch.from_numpy(x).bfloat16()
    expected = torch.from_numpy(forward(engine, x_bf16.float().numpy(), ids, weights)).bfloat16()
    y = torch.empty_like(x_bf16)
    assert engine.forward(LAYER, x_bf16, ids, weights, y) == Status.OK
    assert torch.equal(y, expected)
    bits = np.zeros(x.shape, np.uint16)
    assert engine.forward(LAYER, x_bf16.view(torch.uint16).numpy(), ids, weights, bits) == Status.OK
    np.testing.assert_array_equal(bits, expected.view(torch.uint16).numpy())


def test_shards_sum_to_the_whole(make_experts, make_call, pool):
    experts = make_experts()
    call = make_call(experts, 10, 3)
    parts = [experts.shard(pool, 3, first, count) for first, count in ((0, 1), (1, 3), (4, 2))]
    total = sum(forward(part, *call).astype(np.float64) for part in parts)
    assert_close(total, experts.reference(*call))


def test_a_shard_without_work_gives_zeros(make_experts, make_call, pool):
    experts = make_experts()
    x, ids, weights = make_call(experts, 3, 1)
    ids[:] = 0
    assert not forward(experts.shard(pool, 1, 2, 4), x, ids, weights).any()


def test_skipped_choices_add_nothing(make_experts, make_call, pool, isa):
    experts = make_experts()
    x, ids, weights = make_call(experts, 7, 3)
    ids[0, 1] = ids[2, 0] = ids[2, 2] = ids[4] = -1
    weights[0, 1], weights[2, 0], weights[4] = np.nan, np.inf, np.nan
    y = forward(experts.engine(pool, isa, 3), x, ids, weights)
    assert_close(y, experts.reference(x, ids, weights))
    np.testing.assert_array_equal(y[4], 0)
    ids[:] = -1
    np.testing.assert_array_equal(forward(experts.engine(pool, isa, 3), x, ids, weights), 0)


def test_nan_stays_with_its_token(make_experts, make_call, pool, isa):
    experts = make_experts()
    engine = experts.engine(pool, isa, 3)
    x, ids, weights = make_call(experts, 6, 3)
    clean = forward(engine, x, ids, weights)
    x[1, 0], x[2, 7], weights[4, 0] = np.nan, np.inf, np.nan
    dirty = forward(engine, x, ids, weights)
    assert np.isnan(dirty[[1, 4]]).all()
    assert not np.isfinite(dirty[2]).any()
    np.testing.assert_array_equal(dirty[[0, 3, 5]], clean[[0, 3, 5]])


@pytest.mark.parametrize("bad_id", [-2, 6, 2**31 - 1, -(2**31)])
def test_bad_expert_id(make_experts, make_call, pool, bad_id):
    experts = make_experts()
    x, ids, weights = make_call(experts, 2, 2)
    ids[1, 1] = bad_id
    y = np.full_like(x, 77)
    assert experts.engine(pool, "auto", 2).forward(LAYER, x, ids, weights, y) == Status.BAD_EXPERT_ID
    assert (y == 77).all()


def test_unknown_layer_and_too_many_tokens(make_experts, make_call, pool):
    experts = make_experts()
    engine = experts.engine(pool, "auto", 2, max_tokens=4)
    x, ids, weights = make_call(experts, 5, 2)
    assert engine.forward(LAYER, x, ids, weights, x.copy()) == Status.BAD_TOKEN_COUNT
    assert engine.forward(LAYER + 1, x[:1], ids[:1], weights[:1], x[:1].copy()) == Status.BAD_LAYER
    assert engine.has_layer(LAYER)
    assert not engine.has_layer(LAYER + 1)


def test_counts_the_bytes_it_reads(make_experts, make_call, pool):
    experts = make_experts()
    engine = experts.engine(pool, "auto", 1)
    x, ids, weights = make_call(experts, 3, 1)
    ids[:, 0] = [2, 5, 2]
    forward(engine, x, ids, weights)
    assert engine.bytes_read == 2 * sum(len(raw) for _, raw in experts.raw.values()) // 6


def test_keeps_its_weights_and_pool_alive(make_experts, make_call, rng):
    experts = make_experts()
    call = make_call(experts, 3, 2)
    engine = ExpertEngine(ThreadPool(usable_cpus()), *experts.dims, 2)
    engine.add_layer(
        LAYER,
        **{name: (t, raw.copy()) for name, (t, raw) in experts.raw.items()},
        first_expert=0,
        n_experts=6,
    )
    gc.collect()
    junk = [rng.integers(0, 256, 1 << 18, dtype=np.uint8) for _ in range(8)]
    assert_close(forward(engine, *call), experts.reference(*call))
    assert junk


def test_calls_from_several_threads(make_experts, make_call, pool):
    experts = make_experts()
    engine = experts.engine(pool, "auto", 2)
    calls = [make_call(experts, n, 2) for n in (1, 9, 30, 4)]
    expected = [forward(engine, *call) for call in calls]
    failures = []

    def work(call, right):
        results = [forward(engine, *call) for _ in range(20)]
        failures.extend(len(y) for y in results if not np.array_equal(y, right))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gate": (12, np.zeros(10, np.uint8))},
            "gate: 10 bytes, but 1536 × 256 weights of Q4_K need 221184",
        ),
        ({"down": (9, np.zeros(10, np.uint8))}, "down: GGUF type 9 is not supported"),
        ({"up": (12, np.zeros(10, np.float32))}, "up: need an array of uint8"),
        ({"up": (12,)}, "up: need a tuple"),
        ({"first_expert": 1}, r"experts \[1, 7\) are not within \[0, 6\)"),
        ({"first_expert": -1}, r"experts \[-1, 5\)"),
        ({"n_experts": 0}, "first_expert, n_experts"),
        ({"layer": LAYER}, "layer: 3 is there already"),
    ],
)
def test_add_layer_names_what_is_wrong(make_experts, pool, change, message):
    experts = make_experts()
    engine = experts.engine(pool, "auto", 2)
    arguments = {"layer": 4, **experts.raw, "first_expert": 0, "n_experts": 6, **change}
    with pytest.raises(KernelError, match=message):
        engine.add_layer(**arguments)


def test_rows_that_blocks_do_not_divide(pool):
    engine = ExpertEngine(pool, 256, 96, 2, 1)
    raw = np.zeros(1 << 20, np.uint8)
    with pytest.raises(KernelError, match="down: 96 columns are no multiple of Q4_K's block of 256"):
        engine.add_layer(0, (12, raw), (12, raw), (12, raw), 0, 2)


@pytest.mark.parametrize("name", ["hidden", "intermediate", "n_experts", "top_k", "max_tokens"])
def test_dimensions_below_one(pool, name):
    dims = {"hidden": 256, "intermediate": 256, "n_experts": 4, "top_k": 2, "max_tokens": 8, name: 0}
    with pytest.raises(KernelError, match=f"{name}: must be at least 1"):
        ExpertEngine(pool, **dims)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((2, 255), np.float32)}, "x: need length 256 in dimension 1, have 255"),
        ({"x": np.zeros((2, 256), np.float16)}, "x: need an array of float32 or bfloat16"),
        ({"ids": np.zeros((2, 2), np.int64)}, "ids: need an array of int32"),
        ({"ids": np.zeros((2, 3), np.int32)}, "ids: need length 2 in dimension 1, have 3"),
        ({"weights": np.zeros((1, 2), np.float32)}, "weights: need length 2 in dimension 0, have 1"),
        ({"y": np.zeros((2, 256), np.uint16)}, "y: need an array of float32"),
    ],
)
def test_forward_names_what_is_wrong(make_experts, pool, change, message):
    engine = make_experts().engine(pool, "auto", 2)
    arguments = {
        "x": np.zeros((2, 256), np.float32),
        "ids": np.zeros((2, 2), np.int32),
        "weights": np.zeros((2, 2), np.float32),
        "y": np.zeros((2, 256), np.float32),
        **change,
    }
    with pytest.raises(KernelError, match=message):
        engine.forward(LAYER, **arguments)
