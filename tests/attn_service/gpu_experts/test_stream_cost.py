from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimaran_attn.gpu_experts.stream_cost import (
    GAIN,
    LEAST_TOKENS,
    ExpertCost,
    StreamRates,
    choose_streamed,
    cpu_seconds,
    gpu_seconds,
    streaming_threshold,
)

COST = ExpertCost(nbytes=25_000_000, weights=44_000_000)
RATES = StreamRates(copy=25e9, gpu=100e12, cpu_read=300e9, cpu=1e12)  # 1 ms a copy, 23 tokens a ms on the CPU
positive = st.floats(1e9, 1e15)
some_rates = st.builds(StreamRates, positive, positive, positive, positive)


def test_both_ends_finish_together() -> None:
    counts = [400] * 64
    chosen = choose_streamed(counts, COST, RATES)
    rest = [400] * (64 - len(chosen))
    gpu, cpu = gpu_seconds([400] * len(chosen), COST, RATES), cpu_seconds(rest, COST, RATES)
    assert 0.5 < gpu / cpu < 2
    assert max(gpu, cpu) < 0.2 * cpu_seconds(counts, COST, RATES)


def test_the_busiest_experts_are_streamed() -> None:
    counts = [1, 900, 3, 800, 0, 700, 2, 1]
    chosen = choose_streamed(counts, COST, RATES)
    assert chosen == [1, 3, 5][: len(chosen)]
    assert chosen


@pytest.mark.parametrize("counts", [[], [0] * 8, [1] * 8, [3, 0, 2, 1]])
def test_few_tokens_stay_where_they_are(counts: list[int]) -> None:
    assert choose_streamed(counts, COST, RATES) == []


@given(counts=st.lists(st.integers(0, 3000), max_size=40), rates=some_rates)
def test_it_is_only_done_where_it_pays(counts: list[int], rates: StreamRates) -> None:
    chosen = choose_streamed(counts, COST, rates)
    assert len(set(chosen)) == len(chosen)
    assert all(counts[expert] for expert in chosen)
    if chosen:
        rest = [n for expert, n in enumerate(counts) if expert not in chosen]
        streamed = [counts[expert] for expert in chosen]
        whole = cpu_seconds(counts, COST, rates)
        both = max(gpu_seconds(streamed, COST, rates), cpu_seconds(rest, COST, rates))
        assert both <= (1 - GAIN) * whole * 1.000001
        assert min(streamed) >= max(rest, default=0)


def test_the_threshold_is_where_it_begins_to_pay() -> None:
    rates = StreamRates(copy=25e9, gpu=100e12, cpu_read=300e9, cpu=10e12)
    n = streaming_threshold(256, 8, COST, rates, most=1 << 14)
    assert n > LEAST_TOKENS
    assert choose_streamed([n * 8 // 256] * 256, COST, rates)
    assert not choose_streamed([n // 2 * 8 // 256] * 256, COST, rates)


def test_a_fast_cpu_never_needs_it() -> None:
    fast = StreamRates(copy=1e9, gpu=1e12, cpu_read=400e9, cpu=20e12)
    assert streaming_threshold(256, 8, COST, fast, most=4096) > 4096
