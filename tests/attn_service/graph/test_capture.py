"""Recording without a driver: what the recorder leaves behind when torch cannot record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from trimaran_attn.graph import capture
from trimaran_attn.graph.capture import CudaRecorder

GPU = torch.device("cuda", 0)


class Driver:
    """The current stream, and captures that leave theirs behind if they break off, as torch's do."""

    def __init__(self) -> None:
        self.current = "the thread's"

    @contextmanager
    def graph(self, graph: object, *, stream: str, **_: object) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    fakes = {
        "graph": driver.graph,
        "CUDAGraph": object,
        "graph_pool_handle": lambda: (0, 0),
        "Stream": lambda _: "the capture's",
        "current_stream": lambda _: driver.current,
        "set_stream": lambda stream: setattr(driver, "current", stream),
        "synchronize": lambda _: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(capture, "entered", nullcontext)
    return driver


def test_what_cannot_be_recorded_leaves_the_thread_on_its_stream(driver: Driver) -> None:
    """The step that is launched instead, and all later ones, belong there."""

    def body() -> torch.Tensor:
        assert driver.current == "the capture's"
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        CudaRecorder(GPU).record(body, GPU)
    assert driver.current == "the thread's"
