from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trimaran.cli.restarts import RestartPolicy


def test_delays_double_up_to_a_bound_and_end() -> None:
    policy = RestartPolicy(first_delay_s=1, longest_delay_s=3, max_crashes=5, window_s=100)
    assert [policy.after_crash(now) for now in range(5)] == [1, 2, 3, 3, None]


def test_old_crashes_are_forgotten() -> None:
    policy = RestartPolicy(first_delay_s=1, longest_delay_s=100, max_crashes=2, window_s=10)
    assert policy.after_crash(0) == 1
    assert policy.after_crash(11) == 1
    assert policy.after_crash(12) is None


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=40))
def test_never_more_crashes_in_a_window_than_allowed(gaps: list[float]) -> None:
    policy = RestartPolicy(max_crashes=3, window_s=50)
    now, times = 0.0, []
    for gap in gaps:
        now += gap
        times.append(now)
        delay = policy.after_crash(now)
        recent = [time for time in times if now - time <= 50]
        assert (delay is None) == (len(recent) >= 3)
        if delay is None:
            return
