from __future__ import annotations

import threading
import time

import pytest
from trimaran.timeline import NO_LAYER, Tracer


def test_nothing_is_recorded_or_made_while_off() -> None:
    tracer = Tracer()
    with tracer.span("a"):
        pass
    assert tracer.span("a") is tracer.span("b", 3)
    assert tracer.stop() == []


def test_spans_nest_and_know_their_threads() -> None:
    tracer = Tracer()
    tracer.start()

    def work() -> None:
        with tracer.span("other"):
            pass

    before = time.monotonic_ns()
    with tracer.span("outer"), tracer.span("inner", 3, 7):
        thread = threading.Thread(target=work, name="helper")
        thread.start()
        thread.join()
    other, inner, outer = tracer.stop()
    assert (other.thread, other.name, other.layer) == ("helper", "other", NO_LAYER)
    assert (inner.name, inner.layer, inner.tokens) == ("inner", 3, 7)
    assert before <= outer.start_ns <= inner.start_ns <= other.start_ns <= other.end_ns <= inner.end_ns
    assert inner.end_ns <= outer.end_ns <= time.monotonic_ns()
    assert tracer.stop() == []


def test_a_span_that_raises_is_recorded() -> None:
    tracer = Tracer()
    tracer.start()
    with pytest.raises(ZeroDivisionError), tracer.span("bad"):
        _ = 1 / 0
    assert [span.name for span in tracer.stop()] == ["bad"]


def test_the_last_step_and_too_many_spans_end_the_recording() -> None:
    tracer = Tracer(max_spans=4)
    with tracer.step():
        tracer.start(steps=2)
    for _ in range(5):
        with tracer.step(), tracer.span("inner"):
            pass
    assert [span.name for span in tracer.stop()] == ["inner", "step"] * 2
    tracer.start()
    for _ in range(5):
        with tracer.span("x"):
            pass
    assert not tracer.active
    assert len(tracer.stop()) == 4
