"""Memory of this process as a GPU sees it."""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from trimaran.errors import TrimaranError

_PORTABLE, _MAPPED = 1, 2


class PinningRefusedError(TrimaranError):
    """The driver does not let the GPU see memory that it should."""


class Pinning(Protocol):
    """Makes host memory visible to a device."""

    def register(self, memory: NDArray[np.uint8]) -> int:
        """The address at which the device sees it; raises PinningRefusedError."""
        ...

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """It may be unmapped; the device uses it no more."""
        ...


class CudaPinning:
    """Page-locks memory and maps it for a GPU.

    By the driver itself: a failure of the runtime's calls would be found by whatever torch launches next.

    Args:
        device: whose context asks for the addresses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._driver = ctypes.CDLL("libcuda.so.1")

    def register(self, memory: NDArray[np.uint8]) -> int:
        """See `Pinning.register`."""
        start, nbytes = ctypes.c_void_p(memory.ctypes.data), memory.nbytes
        address = ctypes.c_uint64()
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()  # makes the context current, too
            flags = ctypes.c_uint(_PORTABLE | _MAPPED)
            _check(self._driver.cuMemHostRegister_v2(start, ctypes.c_size_t(nbytes), flags), nbytes)
            code = self._driver.cuMemHostGetDevicePointer_v2(ctypes.byref(address), start, ctypes.c_uint(0))
            if code != 0:
                self._driver.cuMemHostUnregister(start)
            _check(code, nbytes)
        return address.value

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """See `Pinning.unregister`. Waits for the device first."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            self._driver.cuMemHostUnregister(ctypes.c_void_p(memory.ctypes.data))


class SameMemory:
    """For a device that is the CPU: Triton's interpreter."""

    def register(self, memory: NDArray[np.uint8]) -> int:
        """Its own address."""
        return int(memory.ctypes.data)

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """Nothing to do."""


def _check(code: int, nbytes: int) -> None:
    if code != 0:
        raise PinningRefusedError(
            f"the CUDA driver refuses to register {nbytes} bytes of shared memory: error {code}",
            remedy="raise the limit of locked memory, or lower attn.max_step_tokens",
        )
