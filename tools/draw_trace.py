"""Draws one step of a `trimaran trace` file as an SVG picture.

python tools/draw_trace.py trace.json docs/images/trace-step.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

WIDTH, ROW, LABEL, TOP = 1120, 26, 150, 44
COLOURS = {
    "step": "#cbd5e1",
    "forward": "#94a3b8",
    "attention": "#3b82f6",
    "feed forward": "#e2e8f0",
    "gate": "#a855f7",
    "submit": "#f97316",
    "shared experts": "#22c55e",
    "wait": "#fecaca",
    "head": "#eab308",
    "sample": "#ec4899",
    "schedule": "#14b8a6",
    "answer": "#64748b",
    "experts": "#ef4444",
}
LEAST_LABEL = 34
STYLE = (
    "text{font-family:system-ui,sans-serif;font-size:11px;fill:#0f172a}.t{font-weight:600}.s{fill:#64748b}"
)


@dataclass(frozen=True)
class Bar:
    """One span on the picture; times in microseconds."""

    name: str
    start: float
    end: float
    depth: int


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--step", type=int, default=-1, help="which of the recorded steps")
    parser.add_argument("--first-share", type=float, default=1.0, help="draw only the first part of the step")
    options = parser.parse_args()
    events = json.loads(options.trace.read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    steps = [span for span in spans if span["name"] == "step"]
    if not steps:
        raise SystemExit(f"{options.trace} has no step")
    step = steps[options.step]
    end = step["ts"] + options.first_share * step["dur"]
    options.picture.write_text(draw(rows_of(events, spans, step["ts"], end), step["ts"], end))


def rows_of(
    events: Sequence[dict[str, Any]], spans: Sequence[dict[str, Any]], start: float, end: float
) -> list[tuple[str, list[Bar]]]:
    """Bars between two times, by process and thread."""
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    rows = []
    for key, thread in threads.items():
        own = [
            s for s in spans if (s["pid"], s["tid"]) == key and s["ts"] < end and s["ts"] + s["dur"] > start
        ]
        if own:
            rows.append((f"{processes[key[0]]}: {thread}", list(_stack(own))))
    return rows


def _stack(spans: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    """Each span one line below the one that contains it."""
    open_ends: list[float] = []
    for span in spans:
        end = span["ts"] + span["dur"]
        while open_ends and open_ends[-1] <= span["ts"]:
            open_ends.pop()
        yield Bar(span["name"], span["ts"], end, len(open_ends))
        open_ends.append(end)


def draw(rows: Sequence[tuple[str, list[Bar]]], start: float, end: float) -> str:
    """The picture."""
    scale = (WIDTH - LABEL - 10) / (end - start)
    parts, top = [], float(TOP)
    for title, bars in rows:
        process, _, thread = title.partition(": ")
        parts.append(f'<text x="8" y="{top + 12}" class="t">{escape(process)}</text>')
        parts.append(f'<text x="8" y="{top + 26}" class="s">{escape(thread)}</text>')
        for bar in bars:
            left = LABEL + max(0.0, (bar.start - start) * scale)
            right = LABEL + min(end - start, bar.end - start) * scale
            parts.append(_bar(bar, left, right, top + bar.depth * ROW))
        top += (max(bar.depth for bar in bars) + 1) * ROW + 16
    ticks = [_tick(scale, share * (end - start), top) for share in (0, 0.25, 0.5, 0.75, 1)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 8:.0f}"><style>{STYLE}</style>'
    )
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    return head + paper + "".join((*ticks, *parts)) + "</svg>\n"


def _bar(bar: Bar, left: float, right: float, top: float) -> str:
    width = max(right - left, 0.4)
    colour = COLOURS.get(bar.name, "#94a3b8")
    label = ""
    if width > max(LEAST_LABEL, 6.2 * len(bar.name)):
        label = f'<text x="{left + 4:.1f}" y="{top + 15:.0f}">{escape(bar.name)}</text>'
    title = f"<title>{escape(bar.name)}: {bar.end - bar.start:.0f} µs</title>"
    box = f'<rect x="{left:.1f}" y="{top:.0f}" width="{width:.1f}" height="{ROW - 4}" rx="2" fill="{colour}">'
    return f"{box}{title}</rect>{label}"


def _tick(scale: float, at: float, bottom: float) -> str:
    x = LABEL + at * scale
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{bottom:.0f}" stroke="#e2e8f0"/>'
    return f'{line}<text x="{x - 24:.1f}" y="{TOP - 16}" class="s">{at / 1e3:.1f} ms</text>'


if __name__ == "__main__":
    main()
