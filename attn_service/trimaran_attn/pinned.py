"""Memory of this process as a GPU sees it."""

from __future__ import annotations

import ctypes
from typing import Any, Protocol

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

    Args:
        device: whose context asks for the addresses.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        self._driver = ctypes.CDLL("libcuda.so.1")

    def register(self, memory: NDArray[np.uint8]) -> int:
        """See `Pinning.register`."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()  # makes the context current, too
            start, nbytes = memory.ctypes.data, memory.nbytes
            _check(self._runtime.cudaHostRegister(start, nbytes, _PORTABLE | _MAPPED), nbytes)
            address = ctypes.c_uint64()
            code = self._driver.cuMemHostGetDevicePointer_v2(
                ctypes.byref(address), ctypes.c_void_p(start), ctypes.c_uint(0)
            )
            if code != 0:
                self._runtime.cudaHostUnregister(start)
            _check(code, nbytes)
        return address.value

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """See `Pinning.unregister`. Waits for the device first."""
        with torch.cuda.device(self._device):
            torch.cuda.synchronize()
            self._runtime.cudaHostUnregister(memory.ctypes.data)


class SameMemory:
    """For a device that is the CPU: Triton's interpreter."""

    def register(self, memory: NDArray[np.uint8]) -> int:
        """Its own address."""
        return int(memory.ctypes.data)

    def unregister(self, memory: NDArray[np.uint8]) -> None:
        """Nothing to do."""


def _check(code: object, nbytes: int) -> None:
    number = int(code)  # type: ignore[call-overload]
    if number != 0:
        raise PinningRefusedError(
            f"the CUDA driver refuses to register {nbytes} bytes of shared memory: error {number}",
            remedy="raise the limit of locked memory, or lower attn.max_step_tokens",
        )
