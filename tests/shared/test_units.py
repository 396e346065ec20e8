from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimaran.errors import ConfigError
from trimaran.units import format_bytes, parse_bytes, parse_count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("24GiB", 24 << 30),
        ("24 GiB", 24 << 30),
        ("24G", 24 << 30),
        ("24gb", 24 * 10**9),
        ("1.5K", 1536),
        ("2T", 2 << 40),
        ("10B", 10),
    ],
)
def test_parse_bytes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "24 apples", "1e9", "24GiBs"])
def test_parse_bytes_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="no amount of memory"):
        parse_bytes(text)


def test_parse_count() -> None:
    assert parse_count("128K") == 131072
    assert parse_count("4096") == 4096
    with pytest.raises(ConfigError, match="no number of tokens"):
        parse_count("many")


@pytest.mark.parametrize(
    ("n", "expected"),
    [(0, "0 B"), (999, "999 B"), (1 << 20, "1.00 MiB"), (11 << 30, "11.0 GiB"), (-2048, "-2.00 KiB")],
)
def test_format_bytes(n: int, expected: str) -> None:
    assert format_bytes(n) == expected


@given(st.integers(min_value=0, max_value=1 << 50))
def test_format_then_parse_stays_close(n: int) -> None:
    assert abs(parse_bytes(format_bytes(n)) - n) <= max(1, n) * 0.01
