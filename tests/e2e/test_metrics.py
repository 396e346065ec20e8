"""Every metric that dashboards may rely on, from the three real processes after real requests."""

from __future__ import annotations

from typing import Any

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families
from running_server import RunningServer, wait_until

GAUGES = {
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "expert_queue_depth",
    "expert_load_imbalance_ratio", "expert_service_up",
}  # fmt: skip
COUNTERS = {
    "prompt_tokens", "generation_tokens", "prompt_tokens_cached", "prefix_cache_queries", "prefix_cache_hits",
    "num_preemptions", "request_success", "expert_tokens", "expert_bytes_read", "transport_bytes",
}  # fmt: skip
HISTOGRAMS = {
    "time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds",
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
    "request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens",
    "expert_rpc_latency_seconds", "expert_layer_compute_seconds", "attention_wait_on_experts_seconds",
}  # fmt: skip
MAY_BE_ZERO = {"num_preemptions", "prompt_tokens_cached", "prefix_cache_hits"}
WAIT_S = 30.0


def test_every_metric_is_there_and_counts(demo_server: RunningServer) -> None:
    question: Any = [{"role": "user", "content": "What is 8 + 5?"}]
    with openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="none") as client:
        for _ in range(2):
            client.chat.completions.create(model="demo", messages=question)

    def is_counted() -> bool:  # the experts' counters come with their heartbeat
        return totals(demo_server).get("trimaran_expert_layer_compute_seconds_count", 0) > 0

    wait_until(is_counted, WAIT_S, "the expert service reports its calls")
    text = httpx.get(f"{demo_server.url}/metrics").text
    assert "by the engine\n" not in text, "a metric without an explanation"
    assert "_created" not in text
    found = totals(demo_server)
    assert {f"trimaran_{name}" for name in GAUGES} <= set(found)
    assert {f"trimaran_{name}_total" for name in COUNTERS} <= set(found)
    counted = {f"trimaran_{name}_total" for name in COUNTERS - MAY_BE_ZERO}
    counted |= {f"trimaran_{name}_count" for name in HISTOGRAMS}
    assert not {name for name in counted if not found.get(name)}, "two requests were answered"
    assert found["trimaran_expert_service_up"] == 1
    assert found["trimaran_request_success_total"] >= 2


def totals(server: RunningServer) -> dict[str, float]:
    """Of each sample name, over all labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
