from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trimaran_attn.graph.buckets import bucket_of, bucket_sizes


def test_powers_of_two_and_the_most():
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(2) == (1, 2)
    assert bucket_sizes(16) == (1, 2, 4, 8, 16)
    assert bucket_sizes(24) == (1, 2, 4, 8, 16, 24)


@given(st.integers(1, 1024), st.data())
def test_every_count_has_a_bucket_that_wastes_less_than_half(max_running, data):
    n = data.draw(st.integers(1, max_running))
    size = bucket_of(n, bucket_sizes(max_running))
    assert n <= size <= max_running
    assert size < 2 * n
