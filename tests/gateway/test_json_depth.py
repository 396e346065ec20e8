from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimaran_gateway.json_depth import depth_of, is_deeper

JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\a\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=4), inner, max_size=3)
    ),
    max_leaves=30,
)


def walk(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(walk, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_depth_is_exact(value: Any) -> None:
    text, depth = json.dumps(value).encode(), walk(value)
    assert depth_of(text) == depth
    assert not is_deeper(text, depth)
    assert depth == 0 or is_deeper(text, depth - 1)


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        (b"", 0),
        (b"[" * 99, 99),
        (b"]" * 99, 0),
        (b"}{" * 99, 0),
        (b'"' + b"[" * 99, 0),
        (b'""[{', 2),
        (b'"\\', 0),
    ],
)
def test_texts_that_are_no_json(text: bytes, depth: int) -> None:
    assert depth_of(text) == depth


def test_brackets_in_texts_do_not_count() -> None:
    assert not is_deeper(json.dumps({"a": "[" * 999 + '\\"' * 99 + "{" * 999}).encode(), 1)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000 + b"]" * 1_000_000,
        b'"' + b'\\"' * 1_000_000 + b"[" * 99,
        b"[]," * 700_000,
        b'"' * 2_000_001 + b"[" * 99,
    ],
)
def test_time_is_linear(text: bytes) -> None:
    start = time.process_time()
    is_deeper(text, 64)
    assert time.process_time() - start < 1
