"""What is said to the CUDA driver about shared memory, with a driver that is not there."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trimaran_attn.pinned import CudaPinning, PinningRefusedError

REFUSED = 712
FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
MEMORY = np.zeros(4096, np.uint8)


class Driver:
    """Answers as libcuda does: a code, 0 is success.

    Attributes:
        codes: of calls that fail, by name.
        with_display: numbers of devices that have one.
    """

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.with_display: set[int] = set()
        self.registered: set[int] = set()

    def cuDeviceGet(self, handle, number) -> int:  # noqa: N802 the driver's names
        handle._obj.value = 100 + number.value
        return self.codes.get("cuDeviceGet", 0)

    def cuDeviceGetAttribute(self, value, attribute, handle) -> int:  # noqa: N802
        assert attribute.value == 17
        value._obj.value = int(handle.value - 100 in self.with_display)
        return self.codes.get("cuDeviceGetAttribute", 0)

    def cuMemHostRegister_v2(self, start, nbytes, flags) -> int:  # noqa: N802
        assert (nbytes.value, flags.value) == (MEMORY.nbytes, 3)
        code = self.codes.get("cuMemHostRegister_v2", 0)
        if not code:
            self.registered.add(start.value)
        return code

    def cuMemHostGetDevicePointer_v2(self, address, start, flags) -> int:  # noqa: N802
        assert flags.value == 0
        address._obj.value = start.value + (1 << 40)
        return 0 if start.value in self.registered else REFUSED

    def cuMemHostUnregister(self, start) -> int:  # noqa: N802
        self.registered.discard(start.value)
        return self.codes.get("cuMemHostUnregister", 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    fake = SimpleNamespace(**{**vars(ctypes), "CDLL": lambda _name: driver})
    monkeypatch.setattr("trimaran_attn.pinned.ctypes", fake)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device=None: None)
    return driver


def test_memory_is_registered_seen_and_given_back(driver: Driver) -> None:
    pinning = CudaPinning(FIRST, SECOND)
    pinning.register(MEMORY)
    assert pinning.address(MEMORY, SECOND) == MEMORY.ctypes.data + (1 << 40)
    pinning.unregister(MEMORY)
    assert not driver.registered
    with pytest.raises(PinningRefusedError, match=f"refuses to show the GPU 4096 .* error {REFUSED}"):
        pinning.address(MEMORY, FIRST)


def test_what_the_driver_refuses_is_told(driver: Driver) -> None:
    pinning = CudaPinning(FIRST)
    driver.codes = dict.fromkeys(("cuMemHostRegister_v2", "cuMemHostUnregister"), REFUSED)
    with pytest.raises(PinningRefusedError, match=f"refuses to register 4096 bytes .* error {REFUSED}"):
        pinning.register(MEMORY)
    with pytest.raises(PinningRefusedError, match=f"refuses to give back 4096 bytes .* error {REFUSED}"):
        pinning.unregister(MEMORY)


def test_a_gpu_with_a_display_may_not_wait_long(driver: Driver) -> None:
    driver.with_display = {1}
    with pytest.raises(PinningRefusedError, match="cuda:1 has a display"):
        CudaPinning(FIRST, SECOND).register(MEMORY)
    assert not driver.registered
    CudaPinning(FIRST).register(MEMORY)


@pytest.mark.parametrize("call", ["cuDeviceGet", "cuDeviceGetAttribute"])
def test_a_driver_that_does_not_say_is_no_hindrance(driver: Driver, call: str) -> None:
    driver.with_display, driver.codes[call] = {0}, REFUSED
    CudaPinning(FIRST).register(MEMORY)
