from __future__ import annotations

from trimaran_experts.compute_times import compute_times


def test_buckets_hold_all_below_them() -> None:
    gate = {"calls": 9, "busy_ns": 3_500_000, "busy_le_5000": 2, "busy_le_1000000": 3, "busy_le_inf": 1}
    assert compute_times(gate) == {
        'expert_layer_compute_seconds_bucket{le="5e-06"}': 2,
        'expert_layer_compute_seconds_bucket{le="0.001"}': 5,
        'expert_layer_compute_seconds_bucket{le="+Inf"}': 6,
        "expert_layer_compute_seconds_sum": 0.0035,
    }


def test_nothing_before_there_is_a_gate() -> None:
    assert compute_times({}) == {}
