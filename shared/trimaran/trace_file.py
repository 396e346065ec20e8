"""Timelines in Chrome's trace event format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Format: "Trace Event Format", its JSON object form with complete ("X") and metadata ("M") events.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimaran.wire import TraceSpan

Event = dict[str, Any]


def chrome_trace(processes: Mapping[str, Sequence[TraceSpan]]) -> dict[str, Any]:
    """The file's content.

    Args:
        processes: spans by the name of the process that they are from, in the order of their rows.
    """
    starts = [span.start_ns for spans in processes.values() for span in spans]
    origin = min(starts, default=0)
    events: list[Event] = []
    for pid, (name, spans) in enumerate(processes.items(), 1):
        events.append(_metadata("process_name", pid, 0, name))
        events.append({**_metadata("process_sort_index", pid, 0, ""), "args": {"sort_index": pid}})
        events.extend(_thread_events(pid, spans, origin))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _thread_events(pid: int, spans: Sequence[TraceSpan], origin: int) -> Iterator[Event]:
    tids: dict[str, int] = {}
    # Outer spans before the inner ones that begin with them, as the format asks.
    for span in sorted(spans, key=lambda span: (span.start_ns, -span.end_ns)):
        if span.thread not in tids:
            tids[span.thread] = len(tids) + 1
            yield _metadata("thread_name", pid, tids[span.thread], span.thread)
        yield {
            "ph": "X",
            "name": span.name,
            "pid": pid,
            "tid": tids[span.thread],
            "ts": (span.start_ns - origin) / 1e3,
            "dur": (span.end_ns - span.start_ns) / 1e3,
            "args": _arguments(span),
        }


def _arguments(span: TraceSpan) -> dict[str, int]:
    arguments = {"layer": span.layer} if span.layer >= 0 else {}
    return arguments | ({"tokens": span.tokens} if span.tokens else {})


def _metadata(kind: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
