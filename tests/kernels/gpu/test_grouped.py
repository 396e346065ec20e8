"""Experts on the GPU: both ways of a batch against the reference."""

from __future__ import annotations

import interpreted
import pytest
import torch
from torch import Tensor
from trimaran.gguf import GGMLType
from trimaran_kernels.gpu import grouped, grouped_gemm, grouped_gemv
from trimaran_kernels.gpu.grouped import grouped_experts
from trimaran_kernels.gpu.grouped_reference import grouped_reference
from trimaran_kernels.gpu.grouped_routing import route, slots_of
from trimaran_kernels.gpu.grouped_stack import ExpertStack
from trimaran_kernels.gpu.matrix import QuantMatrix
from trimaran_kernels.gpu.reference import expand_reference

Q4, Q6, Q8 = GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.Q8_0
HIDDEN, WIDE, EXPERTS, TOP_K = 256, 96, 7, 3
SLOTS = {1: 2, 3: 0, 6: 1}  # by expert
TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by programs, not by their size."""
    if not interpreted.ON_GPU:
        monkeypatch.setattr(grouped_gemv, "rows_per_program", lambda _: 256)


@pytest.fixture(params=["place by place", "sorted"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(grouped, "PLACE_BY_PLACE", 1 << 30 if request.param == "place by place" else 0)
    return request.param


@pytest.fixture
def make_stack(make_blocks):
    def make(types=(Q4, Q4, Q8), hidden=HIDDEN, wide=WIDE, n_slots=3) -> ExpertStack:
        stack = ExpertStack.empty(n_slots, types, hidden, wide, interpreted.DEVICE)
        for slot in range(n_slots):
            stack.put(slot, make_expert(make_blocks, types, hidden, wide))
        return stack

    return make


def make_expert(make_blocks, types, hidden, wide):
    shapes = ((wide, hidden), (wide, hidden), (hidden, wide))
    return [
        QuantMatrix.from_blocks(type_, make_blocks(type_, *shape), shape)
        for type_, shape in zip(types, shapes, strict=True)
    ]


def make_batch(n: int, hidden: int = HIDDEN, dtype: torch.dtype = torch.float32, seed: int = 0):
    random = torch.Generator().manual_seed(100 * n + seed)
    x = torch.randn(n, hidden, generator=random) * 0.3
    ids = torch.rand(n, EXPERTS, generator=random).argsort(1)[:, :TOP_K].int()
    weights = torch.rand(n, TOP_K, generator=random)
    return (x.to(interpreted.DEVICE, dtype), ids.to(interpreted.DEVICE), weights.to(interpreted.DEVICE))


def slot_table(slots: dict[int, int] = SLOTS) -> Tensor:
    table = torch.full((EXPERTS,), -1, dtype=torch.int32)
    for expert, slot in slots.items():
        table[expert] = slot
    return table.to(interpreted.DEVICE)


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert got.dtype == torch.float32
    assert got.isfinite().all()
    error = (got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("n", [1, 4])
def test_both_ways_are_the_reference(way, make_stack, n):
    stack, batch = make_stack(), make_batch(n)
    assert_near(grouped_experts(*batch, slot_table(), stack), grouped_reference(*batch, slot_table(), stack))


@pytest.mark.parametrize("types", [(Q4, Q4, Q6), (GGMLType.IQ4_XS, Q8, Q8)])
def test_types_may_differ(way, make_stack, types):
    stack, batch = make_stack(types, wide=256, n_slots=2), make_batch(1)
    table = slot_table({int(batch[1][0, 2]): 1, int(batch[1][0, 0]): 0})
    assert_near(grouped_experts(*batch, table, stack), grouped_reference(*batch, table, stack))


def test_every_native_type(way, make_stack, native):
    stack, (x, ids, weights) = make_stack((native,) * 3, wide=256, n_slots=1), make_batch(1)
    batch, table = (x, ids, weights), slot_table({int(ids[0, 1]): 0})
    assert_near(grouped_experts(*batch, table, stack), grouped_reference(*batch, table, stack))


@pytest.mark.parametrize(("hidden", "wide"), [(96, 32), (288, 160)])
def test_sizes_that_no_tile_divides(way, make_stack, hidden, wide):
    stack, batch = make_stack((GGMLType.Q4_0, GGMLType.Q4_0, Q8), hidden, wide), make_batch(3, hidden)
    assert_near(grouped_experts(*batch, slot_table(), stack), grouped_reference(*batch, slot_table(), stack))


def test_half_precision(way, make_stack):
    stack, batch = make_stack(), make_batch(3, dtype=torch.float16)
    got = grouped_experts(*batch, slot_table(), stack)
    assert_near(got, grouped_reference(*batch, slot_table(), stack), torch.float16)


def test_the_reference_is_the_formula(make_stack):
    stack, (x, ids, weights) = make_stack(), make_batch(4)
    expected = torch.zeros_like(x)
    for token in range(4):
        for expert, weight in zip(ids[token].tolist(), weights[token], strict=True):
            if expert in SLOTS:
                gate, up, down = (expand_reference(matrix) for matrix in stack.expert(SLOTS[expert]))
                hidden = torch.nn.functional.silu(gate @ x[token]) * (up @ x[token])
                expected[token] += weight * (down @ hidden)
    assert_near(grouped_reference(x, ids, weights, slot_table(), stack), expected)


def test_tokens_without_residents_get_zero_whatever_their_weights(way, make_stack):
    stack, (x, ids, weights) = make_stack(), make_batch(5)
    ids[1] = torch.tensor([0, 2, 4], dtype=torch.int32)
    ids[3] = -1
    weights[1], weights[3] = torch.nan, torch.inf
    got = grouped_experts(x, ids, weights, slot_table(), stack)
    assert not got[[1, 3]].any()
    assert_near(got, grouped_reference(x, ids, torch.nan_to_num(weights, 0, 0), slot_table(), stack))


@pytest.mark.parametrize("ids", [-1, 0])
def test_nobody_meets_a_resident(way, make_stack, ids):
    x, chosen, weights = make_batch(3)
    got = grouped_experts(x, torch.full_like(chosen, ids), weights, slot_table(), make_stack())
    assert torch.equal(got, torch.zeros_like(got))


def test_all_tokens_for_one_expert_and_experts_that_repeat(way, make_stack):
    stack, (x, ids, weights) = make_stack(), make_batch(5)
    ids[:, 0], ids[:, 1:] = 6, -1
    ids[3] = 6
    ids[4] = torch.tensor([1, 6, 1], dtype=torch.int32)
    got = grouped_experts(x, ids, weights, slot_table(), stack)
    assert_near(got, grouped_reference(x, ids, weights, slot_table(), stack))


def test_a_nan_stays_with_its_token(way, make_stack):
    stack, (x, ids, weights) = make_stack(), make_batch(5)
    ids[:, 0] = 3
    clean = grouped_experts(x, ids, weights, slot_table(), stack)
    x[2, 7], weights[4, 0] = torch.nan, torch.inf
    dirty = grouped_experts(x, ids, weights, slot_table(), stack)
    assert dirty[2].isnan().all()
    assert not dirty[4].isfinite().any()
    assert torch.equal(dirty[[0, 1, 3]], clean[[0, 1, 3]])


def test_results_are_added_to_what_is_there(way, make_stack):
    stack, batch = make_stack(), make_batch(4)
    alone = grouped_experts(*batch, slot_table(), stack)
    there = torch.randn_like(alone)
    expected = there + alone
    assert grouped_experts(*batch, slot_table(), stack, there) is there
    torch.testing.assert_close(there, expected)


def test_the_same_bits_again(way, make_stack):
    stack, batch = make_stack(), make_batch(3)
    once, again = (grouped_experts(*batch, slot_table(), stack) for _ in range(2))
    assert torch.equal(once, again)


def test_no_tokens(way, make_stack):
    assert grouped_experts(*make_batch(0), slot_table(), make_stack()).shape == (0, HIDDEN)


def test_outputs_are_summed_in_slices(make_stack, monkeypatch):
    monkeypatch.setattr(grouped, "PLACE_BY_PLACE", 0)
    monkeypatch.setattr(grouped_gemm, "PART_BYTES", 4 * 64 * 4 * TOP_K)
    stack, batch = make_stack((GGMLType.Q4_0,) * 2 + (Q8,), 160, 64), make_batch(4, 160)
    assert grouped_gemm.slice_rows_of(4 * TOP_K, 64) == 64  # three slices, the last of 32 columns
    assert_near(grouped_experts(*batch, slot_table(), stack), grouped_reference(*batch, slot_table(), stack))


def test_a_slot_may_be_overwritten(make_stack, make_blocks):
    stack, batch = make_stack(), make_batch(3)
    table = slot_table()
    before = grouped_experts(*batch, table, stack)
    stack.put(0, make_expert(make_blocks, (Q4, Q4, Q8), HIDDEN, WIDE))
    after = grouped_experts(*batch, table, stack)
    met = (slots_of(batch[1], table) == 0).any(1)
    assert met.any()
    assert not met.all()
    assert torch.equal(before[~met], after[~met])
    assert_near(after, grouped_reference(*batch, table, stack))


def test_a_stack_counts_its_bytes():
    stack = ExpertStack.empty(5, (Q4, Q4, Q6), 512, 256, interpreted.DEVICE)
    assert stack.nbytes == 5 * 512 * 256 * (148 + 148 + 210) // 256
    assert not expand_reference(stack.down).any()


@pytest.mark.parametrize("tile", [1, 4, 16])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_routing_puts_each_place_in_one_block_of_its_slot(n, tile):
    _, ids, _ = make_batch(n)
    ids[0, 0] = -1
    routing = route(ids, slot_table(), 3, tile)
    wanted = slots_of(ids, slot_table()).flatten().tolist()
    seen: list[int] = []
    for slot, first, end in zip(*(part.tolist() for part in routing[1:]), strict=True):
        if slot < 0:
            continue
        assert 0 < end - first <= tile
        places = routing.order[first:end].tolist()
        assert places == sorted(places)
        assert {wanted[place] for place in places} == {slot}
        seen += places
    assert sorted(seen) == [place for place, slot in enumerate(wanted) if slot >= 0]
