"""What an engine is made of, as far as it can be known without loading one."""

from __future__ import annotations

import pytest
import torch
from trimaran.config import AttnConfig
from trimaran_attn.loading import records_steps
from trimaran_attn.placement import Placement, Stage

CPU, ONE, TWO = torch.device("cpu"), torch.device("cuda:0"), torch.device("cuda:1")


@pytest.mark.parametrize(
    ("devices", "options", "recorded"),
    [
        ((CPU,), {}, False),
        ((ONE,), {}, True),
        ((ONE,), {"defer_experts": 2}, True),
        ((ONE,), {"cuda_graphs": "off"}, False),
        ((ONE, TWO), {}, True),
        ((ONE, TWO), {"defer_experts": 2}, False),
        ((ONE, TWO), {"cuda_graphs": "off"}, False),
    ],
)
def test_steps_are_recorded_on_gpus_that_defer_nothing_to_each_other(devices, options, recorded):
    stages = tuple(Stage(device, range(3 * n, 3 * n + 3)) for n, device in enumerate(devices))
    assert records_steps(AttnConfig(**options), Placement(stages)) is recorded
