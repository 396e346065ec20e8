from __future__ import annotations

import pytest
import torch
from trimaran_attn.gpu_experts.caretaker import LOOK_S, SAVE_S, Caretaker
from trimaran_attn.gpu_experts.heat import Heat
from trimaran_attn.gpu_experts.resident import ExpertFile, ResidentLayer
from trimaran_kernels.gpu.grouped_reference import grouped_reference

CPU = torch.device("cpu")


class Scene:
    """A caretaker with a clock and counters that a test turns."""

    def __init__(self, layer: ResidentLayer) -> None:
        self.now = 100.0
        self.routed: dict[int, list[int]] = {}
        self.kept: list[dict[int, list[int]]] = []
        self.caretaker = Caretaker(
            [layer],
            Heat(16),
            lambda heat: self.kept.append({number: list(each) for number, each in heat.counts.items()}),
            lambda: self.routed,
            lambda: self.now,
        )

    def look(self, *, idle: bool = False) -> None:
        self.now += LOOK_S
        self.caretaker.tend(idle=idle)


@pytest.fixture
def layer(site_of) -> ResidentLayer:
    return ResidentLayer(ExpertFile.of(site_of(2)), (3, 5), CPU, grouped_reference)


def test_both_places_count(layer, make_batch):
    scene = Scene(layer)
    x, _, weights = make_batch(3)
    ids = torch.tensor([[3, 1, 0, 9], [5, 3, 8, 2], [4, 6, 7, 1]], dtype=torch.int32)
    layer.compute(x, ids, weights, layer.here(ids))
    scene.routed = {1: [4] * 16, 2: [1] * 9 + [0] * 7}
    scene.look()
    tally = scene.caretaker.tally
    assert tally.tokens[2][3] == 2
    assert sum(tally.tokens[2]) == 3
    assert tally.share == 3 / (3 + 9 + 64)
    assert tally.nbytes == layer.stack.nbytes > 0
    assert tally.gauges["gpu_experts"] == 2
    assert tally.counters == {"gpu_expert_tokens_total": 3}


def test_experts_move_only_when_nothing_runs_and_one_at_a_time(layer):
    scene = Scene(layer)
    scene.routed = {2: [900, 800, 0, 700] + [0] * 12}
    scene.look()
    assert layer.experts == [3, 5]
    scene.look(idle=True)
    assert layer.experts == [3, 0]
    scene.caretaker.tend(idle=True)  # too early
    assert layer.experts == [3, 0]
    scene.look(idle=True)
    assert layer.experts == [3, 0]  # 800 is not enough more than 700
    scene.routed = {2: [900, 1800, 0, 700] + [0] * 12}
    scene.look(idle=True)
    assert layer.experts == [1, 0]


def test_the_heat_is_kept_now_and_then_and_at_the_end(layer):
    scene = Scene(layer)
    scene.routed = {2: [1] * 16}
    for _ in range(int(SAVE_S / LOOK_S)):
        scene.look()
    assert scene.kept == [{2: [1] * 16}]
    scene.routed = {2: [2] * 16}
    scene.caretaker.close()
    assert scene.kept == [{2: [1] * 16}, {2: [2] * 16}]


def test_heat_that_did_not_change_is_not_written_again(layer):
    scene = Scene(layer)
    for _ in range(int(3 * SAVE_S / LOOK_S)):
        scene.look()
    assert not scene.kept
    scene.routed = {2: [1] * 16}
    for _ in range(int(3 * SAVE_S / LOOK_S)):
        scene.look()
    scene.caretaker.close()
    assert len(scene.kept) == 1
