"""The gateway's own metrics: what counts as a request's length, and that each name is explained."""

from __future__ import annotations

from trimaran_gateway.engine.metric_help import help_of
from trimaran_gateway.metrics import GatewayMetrics
from trimaran_gateway.output.events import TokenUsage

LENGTH = "trimaran_request_prompt_tokens"


def test_a_refused_prompt_has_no_length() -> None:
    """A prompt far beyond the context is refused: it must not move the mean length of prompts."""
    metrics = GatewayMetrics()
    metrics.start_request(540_000).close()
    assert metrics.registry.get_sample_value(f"{LENGTH}_count") == 0
    assert metrics.registry.get_sample_value("trimaran_requests_aborted_total") == 1


def test_an_answered_prompt_has_its_length() -> None:
    metrics = GatewayMetrics()
    timer = metrics.start_request(15)
    timer.tokens(2)
    timer.finished("stop", TokenUsage(prompt_tokens=15, completion_tokens=2))
    timer.close()
    assert metrics.registry.get_sample_value(f"{LENGTH}_sum") == 15
    assert metrics.registry.get_sample_value("trimaran_requests_aborted_total") == 0


def test_failures_by_the_engine_are_explained() -> None:
    assert "by the engine" not in help_of("request_failure")
