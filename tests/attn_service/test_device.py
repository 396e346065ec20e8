from __future__ import annotations

import pytest
import torch
from trimaran.config import AttnConfig
from trimaran.errors import ConfigError
from trimaran_attn.device import choose_device, compute_dtype, start_threads


@pytest.mark.parametrize(
    ("count", "wanted", "device"),
    [(0, "auto", "cpu"), (2, "auto", "cuda:0"), (2, "cpu", "cpu"), (2, "cuda:1", "cuda:1")],
)
def test_the_device_that_is_there(
    count: int, wanted: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert choose_device(wanted) == torch.device(device)


@pytest.mark.parametrize(("count", "wanted"), [(0, "cuda"), (1, "cuda:1")])
def test_a_gpu_that_is_not_there_is_refused(count: int, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError, match=f"attn.device is {wanted}, but {count} GPU"):
        choose_device(wanted)


def test_element_types() -> None:
    assert compute_dtype(torch.device("cpu")) == torch.float32
    assert compute_dtype(torch.device("cuda:0")) == torch.bfloat16


def test_threads_are_those_asked_for() -> None:
    assert start_threads(AttnConfig(threads=1)).size == 1
    assert torch.get_num_threads() == 1
