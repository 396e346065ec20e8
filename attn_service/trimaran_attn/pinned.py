"""Memory of this process as a GPU sees it."""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from trimaran.errors import TrimaranError

_PORTABLE, _MAPPED = 1, 2
_KERNEL_EXEC_TIMEOUT = 17
"""CUdevice_attribute: whether the driver ends kernels that run long."""


class PinningRefusedError(TrimaranError):
    """The driver does not let the GPU see memory that it should, or wait for what comes there."""


class Pinning(Protocol):
    """Makes host memory visible to devices."""

    def register(self, memory: NDArray[np.uint8]) -> None:
        """Once, for all devices.

        Raises:
            PinningRefusedError: it cannot be, or a device could not wait there for as long as it takes.
        """
        ...

    def address(self, memory: NDArray[np.uint8], device: torch.device) -> int:
        """At which a device sees registered memory; raises PinningRefusedError if it does not."""
        ...

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """It may be unmapped; the devices use it no more. Raises PinningRefusedError."""
        ...


class CudaPinning:
    """Page-locks memory, portable: every context of the process may map it.

    By the driver itself: a failure of the runtime's calls would be found by whatever torch launches next.

    Args:
        devices: that are to see it.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._devices = devices
        self._driver = ctypes.CDLL("libcuda.so.1")

    def register(self, memory: NDArray[np.uint8]) -> None:
        """See `Pinning.register`."""
        nbytes = memory.nbytes
        with torch.cuda.device(self._devices[0]):
            torch.cuda.synchronize()  # makes the context current, too
            for device in self._devices:
                self._check_patience(device)
            flags = ctypes.c_uint(_PORTABLE | _MAPPED)
            code = self._driver.cuMemHostRegister_v2(_start(memory), ctypes.c_size_t(nbytes), flags)
        _check(code, "register", nbytes)

    def address(self, memory: NDArray[np.uint8], device: torch.device) -> int:
        """See `Pinning.address`."""
        address = ctypes.c_uint64()
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            code = self._driver.cuMemHostGetDevicePointer_v2(
                ctypes.byref(address), _start(memory), ctypes.c_uint(0)
            )
        _check(code, "show the GPU", memory.nbytes)
        return address.value

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """See `Pinning.unregister`. Waits for the devices first."""
        for device in self._devices:
            torch.cuda.synchronize(device)
        with torch.cuda.device(self._devices[0]):
            code = self._driver.cuMemHostUnregister(_start(memory))
        _check(code, "give back", memory.nbytes)

    def _check_patience(self, device: torch.device) -> None:
        """The kernel that waits for the experts runs as long as they take: some drivers do not allow it."""
        handle, ends = ctypes.c_int(), ctypes.c_int()
        codes = (
            self._driver.cuDeviceGet(ctypes.byref(handle), ctypes.c_int(device.index or 0)),
            self._driver.cuDeviceGetAttribute(ctypes.byref(ends), ctypes.c_int(_KERNEL_EXEC_TIMEOUT), handle),
        )
        if not any(codes) and ends.value:
            raise PinningRefusedError(
                f"{device} has a display: its driver ends kernels that wait for seconds",
                remedy="for faster steps give the display to another GPU",
            )


class SameMemory:
    """For devices that are the CPU: Triton's interpreter."""

    def register(self, memory: NDArray[np.uint8]) -> None:
        """Nothing to do."""

    def address(self, memory: NDArray[np.uint8], device: torch.device) -> int:
        """Its own."""
        del device
        return int(memory.ctypes.data)

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """Nothing to do."""


def _start(memory: NDArray[np.uint8]) -> ctypes.c_void_p:
    return ctypes.c_void_p(memory.ctypes.data)


def _check(code: int, what: str, nbytes: int) -> None:
    if code != 0:
        raise PinningRefusedError(
            f"the CUDA driver refuses to {what} {nbytes} bytes of shared memory: error {code}",
            remedy="raise the limit of locked memory, or lower attn.max_step_tokens",
        )
