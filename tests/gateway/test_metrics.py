"""The gateway's own metrics: what counts as a request's length, and that each name is explained."""

from __future__ import annotations

from pathlib import Path

from trimaran_gateway.engine import metric_help
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


def test_start_times_of_series_are_left_out() -> None:
    metrics = GatewayMetrics()
    metrics.http.labels("/", "200").inc()
    text = metrics.expose().decode()
    assert "_created" not in text
    assert 'trimaran_http_requests_total{path="/",status="200"} 1.0' in text
    assert "trimaran_time_to_first_token_seconds_bucket" in text


def test_the_manual_names_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    table = page.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    own = {family.name.removeprefix("trimaran_") for family in GatewayMetrics().registry.collect()}
    assert not {name for name in own | set(metric_help.NAMES) if f"`{name}" not in table}


def test_failures_by_the_engine_are_explained() -> None:
    assert "by the engine" not in help_of("request_failure")
