from __future__ import annotations

import msgspec
from trimaran.trace_file import chrome_trace
from trimaran.wire import TraceSpan

SPANS = [
    TraceSpan("engine", "inner", 2_000, 3_500, 4, 16),
    TraceSpan("engine", "outer", 2_000, 9_000),
    TraceSpan("socket", "answer", 9_500, 9_750),
]


def test_events_are_those_of_the_format() -> None:
    experts = [TraceSpan("compute", "experts", 2_500, 3_000, 4, 16)]
    trace = msgspec.json.decode(msgspec.json.encode(chrome_trace({"attention": SPANS, "experts": experts})))
    events = trace["traceEvents"]
    assert all({"ph", "name", "pid", "tid", "args"} <= event.keys() for event in events)
    names = [(e["pid"], e["args"]["name"]) for e in events if e["name"] == "process_name"]
    assert names == [(1, "attention"), (2, "experts")]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads == {(1, 1): "engine", (1, 2): "socket", (2, 1): "compute"}
    spans = [event for event in events if event["ph"] == "X"]
    assert [(e["name"], e["pid"], e["tid"], e["ts"], e["dur"]) for e in spans] == [
        ("outer", 1, 1, 0.0, 7.0),
        ("inner", 1, 1, 0.0, 1.5),
        ("answer", 1, 2, 7.5, 0.25),
        ("experts", 2, 1, 0.5, 0.5),
    ]
    assert [e["args"] for e in spans] == [{}, {"layer": 4, "tokens": 16}, {}, {"layer": 4, "tokens": 16}]


def test_nothing_recorded_is_still_a_file_that_opens() -> None:
    assert [e["ph"] for e in chrome_trace({"attention": []})["traceEvents"]] == ["M", "M"]
