from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trimaran_gateway.json_depth import is_deeper

JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\a\n', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{}"\\', max_size=4), inner, max_size=3)
    ),
    max_leaves=30,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=200, deadline=None)
@given(JSON)
def test_depth_is_exact(value: Any) -> None:
    text, depth = json.dumps(value).encode(), depth_of(value)
    assert not is_deeper(text, depth)
    assert depth == 0 or is_deeper(text, depth - 1)


@pytest.mark.parametrize("text", [b"[" * 99, b"]" * 99, b"}{" * 99, b'"' + b"[" * 99 + b'"' + b"[" * 9])
def test_brackets_without_partners_count_as_deep(text: bytes) -> None:
    assert is_deeper(text, 8) == (text.count(b"[") + text.count(b"{") > 8)


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
    assert time.process_time() - start < 2
