from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trimaran.cli.restarts import RestartPolicy


def test_delays_double_up_to_a_bound_and_end() -> None:
    policy = RestartPolicy(first_delay_s=1, longest_delay_s=3, max_crashes=5, window_s=100)
    assert [policy.after_crash(now) for now in range(5)] == [1, 2, 3, 3, None]


def test_what_others_stand_in_for_is_never_given_up_and_waits_ever_longer() -> None:
    policy = RestartPolicy(
        first_delay_s=1, longest_delay_s=3, patient_delay_s=20, max_crashes=3, window_s=100
    )
    now, delays, loops = 0.0, [], []
    for _ in range(7):
        delay = policy.after_crash(now, has_stand_in=True)
        assert delay is not None
        delays.append(delay)
        loops.append(policy.in_loop(now))
        now += delay + 1
    assert delays == [1, 2, 6, 12, 20, 20, 20]
    assert loops == [False, False, True, True, True, True, True]
    assert policy.after_crash(now + 50, has_stand_in=True) == 20, "it lived for half the window"
    assert policy.after_crash(now + 50 + 20 + 101, has_stand_in=True) == 1, "it lived for the window"
    assert not policy.in_loop(now + 171)


def test_who_has_lived_for_the_window_is_in_no_loop() -> None:
    policy = RestartPolicy(first_delay_s=1, longest_delay_s=3, max_crashes=1, window_s=100)
    assert policy.after_crash(0, has_stand_in=True) == 6
    assert policy.in_loop(50)
    assert policy.in_loop(106)
    assert not policy.in_loop(107)


def test_a_loop_ends_when_nobody_stands_in_any_more() -> None:
    policy = RestartPolicy(first_delay_s=1, longest_delay_s=3, max_crashes=1, window_s=100)
    assert policy.after_crash(0, has_stand_in=True) == 6
    assert policy.after_crash(7) is None


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
