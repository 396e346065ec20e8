from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from trimaran.crashes import ServiceCrashes


def test_models(stack: Any, client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny-test"]
    assert client.models.retrieve("tiny-test").owned_by == "trimaran"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_health(stack: Any) -> None:
    for path in ("/health", "/ready"):
        response = httpx.get(stack.url + path)
        assert response.status_code == 200
        assert response.json()["status"] == "ready"


def samples(stack: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = httpx.get(stack.url + "/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests(make_stack: Any) -> None:
    with make_stack() as stack:
        stack.engine.say("</think>hello world")
        stack.client().chat.completions.create(model="tiny-test", messages=[{"role": "user", "content": "x"}])
        found = samples(stack)
        generated = len(stack.model.tokenizer.encode("</think>hello world")) + 1
        assert found["trimaran_request_success_total", (("finished_reason", "stop"),)] == 1
        assert found["trimaran_time_to_first_token_seconds_count", ()] == 1
        assert found["trimaran_inter_token_latency_seconds_count", ()] == generated - 1
        assert found["trimaran_request_generation_tokens_sum", ()] == generated
        assert found["trimaran_e2e_request_latency_seconds_count", ()] == 1
        assert found["trimaran_gateway_requests_in_flight", ()] == 0
        assert (
            found["trimaran_http_requests_total", (("path", "/v1/chat/completions"), ("status", "200"))] == 1
        )


def test_metrics_carry_what_the_engine_reports(make_stack: Any) -> None:
    with make_stack() as stack:
        samples(stack)
        found = samples(stack)
        assert found["trimaran_prompt_tokens_total", ()] == 7
        assert found["trimaran_num_requests_running", ()] == 1
        assert found["trimaran_expert_tokens_total", (("shard", "0"),)] == 11
        assert found["trimaran_expert_queue_depth", (("shard", "0"),)] == 2
        to_experts = (("direction", "to_experts"), ("shard", "1"))
        assert found["trimaran_transport_bytes_total", to_experts] == 100
        compute = "trimaran_expert_layer_compute_seconds"
        assert found[f"{compute}_bucket", (("le", "0.001"), ("shard", "1"))] == 3
        assert found[f"{compute}_count", (("shard", "1"),)] == 4
        assert found[f"{compute}_sum", (("shard", "1"),)] == 0.5
        assert found["trimaran_attention_wait_on_experts_seconds_count", ()] == 4
        assert found["trimaran_evictions_total", (("why", "idle"),)] == 4
        assert found["trimaran_request_failure_total", (("reason", "internal"),)] == 2
        assert found["trimaran_prefix_cache_hits_total", ()] == 5
        assert found["trimaran_engine_up", ()] == 1
        assert found["trimaran_time_to_first_token_seconds_count", ()] == 0
        assert ("trimaran_request_success_total", (("finished_reason", "stop"),)) not in found


def test_metrics_explain_themselves(make_stack: Any) -> None:
    with make_stack() as stack:
        httpx.get(stack.url + "/metrics")
        families = list(text_string_to_metric_families(httpx.get(stack.url + "/metrics").text))
        names = [family.name for family in families]
        assert len(set(names)) == len(names)
        assert all(name.startswith("trimaran_") for name in names)
        for family in families:
            assert family.documentation, family.name
            assert family.type in ("counter", "gauge", "histogram"), family.name
        told = {family.name: family.documentation for family in families}
        assert told["trimaran_prompt_tokens"] == "Prompt tokens of all requests"
        assert told["trimaran_expert_queue_depth"] == "Layer calls that wait"


def test_crashes_are_told(make_stack: Any) -> None:
    with make_stack() as stack:
        assert "crashes" not in httpx.get(f"{stack.url}/health").json()
        twice = ServiceCrashes(count=2, last="was killed by SIGSEGV", in_loop=True)
        stack.crash_file.write({"attn-0": ServiceCrashes(), "attn-1": twice})
        told = {"attn-1": "crashed 2 times; last, it was killed by SIGSEGV"}
        assert httpx.get(f"{stack.url}/health").json()["crashes"] == told
        assert httpx.get(f"{stack.url}/internal/live").json()["crashes"] == told
        found = samples(stack)
        for number, (count, in_loop) in enumerate([(0, 0), (2, 1)]):
            service = (("service", f"attn-{number}"),)
            assert found["trimaran_service_crashes_total", service] == count
            assert found["trimaran_service_crash_loop", service] == in_loop


def test_openapi_lists_every_route(stack: Any) -> None:
    paths = httpx.get(stack.url + "/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"} <= set(paths)
