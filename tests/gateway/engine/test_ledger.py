from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trimaran.wire import EngineStats
from trimaran_gateway.engine.ledger import EngineLedger, Increases


def stats(tokens: float, calls: float = 0, sent: float = 0, instance: str = "a") -> EngineStats:
    return EngineStats(
        counters={"generation_tokens_total": tokens},
        gauges={"num_requests_running": tokens},
        experts={
            "0": {
                "expert_calls_total": calls,
                'expert_layer_compute_seconds_bucket{le="+Inf"}': calls,
                "expert_layer_compute_seconds_sum": calls / 2,
                "expert_queue_depth": 1,
                'transport_bytes_total{direction="to_experts"}': sent,
                "expert_service_up": 1,
            }
        },
        instance=instance,
    )


@given(st.lists(st.lists(st.integers(0, 100), max_size=5), max_size=5))
def test_totals_are_the_sum_of_all_increases(lives: list[list[int]]) -> None:
    """Each life of the engine counts from zero, and tells its counter now and then."""
    counter, told = Increases(), [0.0]
    for life in lives:
        counter.restart()
        for value in sorted(life):
            counter.take({"x_total": value})
            told.append(counter.totals["x_total"])
    assert told == sorted(told)
    assert told[-1] == sum(max(life, default=0) for life in lives)


def test_a_fall_is_a_restart_that_nobody_told_of() -> None:
    counter = Increases()
    for value in (5.0, 9.0, 2.0, 3.0):
        counter.take({"x_total": value})
    assert counter.totals == {"x_total": 12}


def test_a_restart_is_seen_by_the_instance_also_when_nothing_falls() -> None:
    ledger = EngineLedger()
    ledger.take(stats(10, calls=100, sent=7))
    ledger.take(stats(30, calls=110, sent=9, instance="b"))
    assert ledger.counters["generation_tokens_total"] == 40
    assert ledger.gauges["num_requests_running"] == 30
    shard = ledger.shards["0"]
    assert shard["expert_calls_total"] == 110, "the shard did not restart"
    assert shard['transport_bytes_total{direction="to_experts"}'] == 16, "the engine counts these itself"


def test_a_restarted_shard_does_not_take_back_what_it_counted() -> None:
    ledger = EngineLedger()
    for calls in (100, 120, 5, 6):
        ledger.take(stats(0, calls=calls))
    shard = ledger.shards["0"]
    assert shard["expert_calls_total"] == 126
    assert shard['expert_layer_compute_seconds_bucket{le="+Inf"}'] == 126
    assert shard["expert_layer_compute_seconds_sum"] == 63
    assert (shard["expert_queue_depth"], shard["expert_service_up"]) == (1, 1)


def test_an_engine_that_loads_again_reports_nothing_and_loses_nothing() -> None:
    ledger = EngineLedger()
    ledger.take(stats(10, calls=3))
    ledger.take(EngineStats(counters={}, gauges={}, instance="b"))
    assert ledger.counters["generation_tokens_total"] == 10
    assert ledger.gauges == {}
    ledger.take(stats(4, calls=3, instance="b"))
    assert ledger.counters["generation_tokens_total"] == 14


def test_the_load_of_experts_only_grows() -> None:
    ledger = EngineLedger()
    for row in ([5, 0, 2], [6, 1, 2], [1, 1, 0], [2, 1, 3]):
        ledger.take(EngineStats(counters={}, gauges={}, expert_tokens={3: row}))
    assert ledger.tokens == {3: [7, 1, 5]}


def test_another_model_has_other_experts() -> None:
    ledger = EngineLedger()
    for row in ([5, 0], [1, 2, 3], [2, 2, 3]):
        ledger.take(EngineStats(counters={}, gauges={}, expert_tokens={3: row}))
    assert ledger.tokens == {3: [2, 2, 3]}
