from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from trimaran.config import AttnConfig
from trimaran.errors import ConfigError, GpuMemoryError
from trimaran.plan import GPU_RESERVE
from trimaran_attn.device import (
    choose_device,
    compute_dtype,
    enter_gpus,
    explained_memory,
    start_threads,
    sum_in_float32,
)

REAL_MATMUL = torch.backends.cuda.matmul


@pytest.mark.parametrize(
    ("count", "wanted", "device"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1+cuda:0", "cuda:1"),
    ],
)
def test_the_device_that_is_there(
    count: int, wanted: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose_device(wanted) == torch.device(device)


def test_too_old_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 has compute capability 7.5, the kernels need 8.0"):
        choose_device("auto")


def test_the_allocator_keeps_to_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    capped = []
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    total = 80 << 30
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=total))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: capped.append((share, device))
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    first, second = torch.device("cuda:1"), torch.device("cuda:0")
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace())
    enter_gpus({first: 24 << 30, second: 16 << 30})
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False
    assert current == [first]
    assert [device for _, device in capped] == [first, second]
    assert [share * total for share, _ in capped] == [(24 << 30) - GPU_RESERVE, (16 << 30) - GPU_RESERVE]


def test_torch_adds_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace()
    monkeypatch.setattr(torch.backends.cuda, "matmul", settings)
    sum_in_float32()
    assert vars(settings) == {
        "allow_bf16_reduced_precision_reduction": False,
        "allow_fp16_reduced_precision_reduction": False,
    }
    assert all(hasattr(REAL_MATMUL, name) for name in vars(settings))


def test_running_out_of_gpu_memory_is_explained() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")
    with pytest.raises(GpuMemoryError) as caught, explained_memory("loading the model"):
        raise error
    assert str(caught.value).startswith(
        "GPU memory ran out while loading the model: CUDA out of memory. Tried"
    )
    assert "attn.context_length" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("count", "wanted"), [(0, "cuda"), (1, "cuda:1"), (1, "cuda:0+cuda:1")])
def test_a_gpu_that_is_not_there_is_refused(count: int, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigError, match=f"attn.device is {re.escape(wanted)}, but {count} GPU"):
        choose_device(wanted)


def test_element_types() -> None:
    assert compute_dtype(torch.device("cpu")) == torch.float32
    assert compute_dtype(torch.device("cuda:0")) == torch.bfloat16


def test_threads_are_those_asked_for() -> None:
    assert start_threads(AttnConfig(threads=1)).size == 1
    assert torch.get_num_threads() == 1
