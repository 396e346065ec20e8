from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from trimaran.wire import EngineStats, EngineStatus
from trimaran_gateway.engine.collector import EngineCollector
from trimaran_gateway.engine.ledger import EngineLedger
from trimaran_gateway.engine.totals import Books, total_stats, total_status


def status(state: str, **fields: object) -> EngineStatus:
    return EngineStatus(state=state, **{"instance": state, "context_length": 512, **fields})


def test_one_engine_speaks_for_itself() -> None:
    alone = status("loading", progress=0.5)
    assert total_status({"0": alone}) is alone
    assert total_status({"0": None}) is None
    stats = total_stats({"0": books(report(3, 0.2, 10, 100))})
    assert stats is not None
    assert "engine=" not in str(stats)
    assert stats.gauges == {"num_requests_running": 2, "kv_cache_usage_perc": 0.2}
    assert stats.experts["0"]['transport_bytes_total{direction="to_experts"}'] == 100
    assert total_stats({"0": books()}) is None


def test_all_are_ready_or_the_whole_is_degraded() -> None:
    ready, small = status("ready"), status("ready", context_length=256)
    both = total_status({"0": ready, "1": small})
    assert both is not None
    assert (both.state, both.detail, both.context_length) == ("ready", "", 256)
    for other, reason in (
        (None, "engine 1 is away"),
        (status("loading"), "engine 1 is loading"),
        (status("degraded", detail="an expert service is away"), "engine 1 is degraded: an expert"),
    ):
        mixed = total_status({"0": ready, "1": other})
        assert mixed is not None
        assert mixed.state == "degraded"
        assert mixed.detail.startswith(reason)


def test_while_none_takes_requests() -> None:
    near, far = status("loading", progress=0.9), status("loading", progress=0.1)
    assert total_status({"0": far, "1": near}) is near
    assert total_status({"0": status("draining"), "1": far}) is far
    assert total_status({"0": None, "1": None}) is None


def books(*reports: EngineStats, there: bool = True, **counts: int) -> Books:
    ledger = EngineLedger()
    for each in reports:
        ledger.take(each)
    return Books(ledger, status=status("ready") if there else None, **counts)


def report(tokens: int, usage: float, calls: int, sent: int) -> EngineStats:
    return EngineStats(
        counters={"generation_tokens_total": tokens, 'request_failure_total{reason="x"}': 1},
        gauges={"num_requests_running": 2, "kv_cache_usage_perc": usage},
        observations={"expert_rpc_latency_seconds": [0.1]},
        experts={"0": {"expert_calls_total": calls, 'transport_bytes_total{direction="to_experts"}': sent}},
        expert_tokens={3: [calls, 1]},
    )


def test_counters_add_up_and_shards_do_not() -> None:
    both = total_stats({"0": books(report(3, 0.2, 10, 100)), "1": books(report(4, 0.4, 12, 50))})
    assert both is not None
    assert both.counters["generation_tokens_total"] == 7
    assert both.counters['generation_tokens_total{engine="1"}'] == 4
    assert both.gauges["kv_cache_usage_perc"] == (0.2 + 0.4) / 2
    assert both.observations["expert_rpc_latency_seconds"] == [0.1, 0.1]
    assert both.experts["0"]["expert_calls_total"] == 12, "both heard the same shard, at different times"
    assert both.experts["0"]['transport_bytes_total{engine="1",direction="to_experts"}'] == 50
    assert both.expert_tokens == {3: [12, 1]}


def test_prometheus_sees_each_engine_once() -> None:
    there = {"0": books(report(3, 0.2, 10, 100), late_tokens=5), "1": books(report(4, 0.4, 12, 50), moved=2)}
    stats = total_stats({**there, "2": books(there=False)})
    assert stats is not None
    registry = CollectorRegistry()
    collector = EngineCollector(frozenset())
    registry.register(collector)
    collector.take(stats)
    lines = generate_latest(registry).decode().splitlines()
    assert [line for line in lines if line.startswith("trimaran_generation_tokens_total")] == [
        'trimaran_generation_tokens_total{engine="0"} 3.0',
        'trimaran_generation_tokens_total{engine="1"} 4.0',
    ]
    assert 'trimaran_request_failure_total{engine="0",reason="x"} 1.0' in lines
    assert 'trimaran_request_failure_total{reason="x"} 2.0' not in lines
    assert 'trimaran_attention_service_up{engine="2"} 0.0' in lines
    assert 'trimaran_attention_service_silence_seconds{engine="2"} 0.0' in lines
    assert 'trimaran_late_tokens_total{engine="0"} 5.0' in lines
    assert 'trimaran_requests_moved_total{engine="1"} 2.0' in lines
    assert 'trimaran_expert_calls_total{shard="0"} 12.0' in lines
    assert 'trimaran_transport_bytes_total{direction="to_experts",engine="0",shard="0"} 100.0' in lines


def test_what_an_engine_counted_stays_when_it_is_gone() -> None:
    first, second = report(3, 0.2, 10, 100), report(4, 0.4, 12, 50)
    stats = total_stats({"0": books(first), "1": books(second, there=False)})
    assert stats is not None
    assert stats.counters["generation_tokens_total"] == 7
    assert stats.gauges["num_requests_running"] == 2, "nothing runs on an engine that is gone"
    assert stats.gauges["kv_cache_usage_perc"] == 0.2
    assert 'num_requests_running{engine="1"}' not in stats.gauges
    assert stats.experts["0"]["expert_calls_total"] == 12
    assert stats.observations["expert_rpc_latency_seconds"] == [0.1, 0.1]
