from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from trimaran.cli.log_relay import parse_log_line


def test_records_become_readable() -> None:
    raw = json.dumps({"ts": 0.5, "level": "warning", "service": "x", "message": "slow", "layer": 3})
    line = parse_log_line("experts", raw)
    assert line.level == "warning"
    assert line.text().endswith("experts  warning: slow layer=3")
    assert not line.is_ready
    assert parse_log_line("experts", '{"message": "ready"}').is_ready


@given(st.text())
def test_any_line_is_shown(raw: str) -> None:
    line = parse_log_line("attn", raw)
    assert line.raw == raw
    assert "attn" in line.text()
