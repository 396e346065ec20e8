"""A GPU that is not there: its tensors have sizes, types and places, but no contents; its memory is counted.

Whatever torch is asked to do on `cuda:0` is checked as far as shapes, types and devices go, at any size.
What comes back to the host is 0. Kernels are not run: that their tensors are on the device is all that is
seen of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_stand_in import Event, StandIn
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from triton.runtime.interpreter import GridExecutor

GPU = torch.device("cuda:0")
BLOCK = 512
"""Bytes: torch's allocator gives out multiples of it."""
_ATEN = torch.ops.aten
_LOOKS = {_ATEN._local_scalar_dense.default, _ATEN.item.default, _ATEN.equal.default}
_PLACES = {_ATEN.where.default, _ATEN.nonzero_numpy.default, _ATEN.nonzero.default}
_CPU_GUARD, _CUDA_GUARD = 0, 1


@dataclass
class Pool:
    """Bytes that are taken, and the most that were."""

    live: int = 0
    most: int = 0

    def take(self, nbytes: int) -> None:
        """A tensor is made."""
        self.live += nbytes
        self.most = max(self.most, self.live)

    def give(self, nbytes: int) -> None:
        """It is gone."""
        self.live -= nbytes


class FakeCuda(TorchDispatchMode):
    """Use as a context manager around all that makes or uses tensors.

    Args:
        memory: bytes of the device.

    Attributes:
        normal, recorded: what is taken beside recordings, and in them.
        peak: the most bytes that were held.
        launched: names of the kernels that were launched.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, memory: int) -> None:
        super().__init__()
        self.normal, self.recorded = Pool(), Pool()
        self.peak = 0
        self.launched: set[str] = set()
        self._patch = patch
        self._memory = memory
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: set[int] = set()
        self._replace_cuda()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        kwargs.pop("pin_memory", None)
        leaves = tree_flatten((args, kwargs))[0]
        fake = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        if func in _LOOKS and fake:
            return _nothing_of(func, args[0])
        if func is _ATEN.copy_.default and not isinstance(args[0], FakeTensor):
            return args[0].zero_() if fake else func(*args, **kwargs)
        if not fake and not any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves):
            return func(*args, **kwargs)
        args, kwargs = tree_map(self._without_contents, (args, kwargs))
        with self._fake:
            if func is _ATEN.index.Tensor:
                args = (args[0], [_all_of(index) for index in args[1]])
            result = _no_places(func, args[0]) if func in _PLACES else func(*args, **kwargs)
        return tree_map(self._taken, result)

    def __enter__(self) -> FakeCuda:
        torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor` on a GPU comes through here
        _lend_guard()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        torch._C._set_only_lift_cpu_tensors(False)

    def _without_contents(self, value: Any) -> Any:
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self._fake.from_tensor(value) if is_real else value

    def _taken(self, value: Any) -> Any:
        """A result: what is on the host is real, of what is on the device the memory counts."""
        if not isinstance(value, FakeTensor):
            return value
        if value.device.type == "cpu":
            return torch.zeros(value.shape, dtype=value.dtype)
        storage = value.untyped_storage()
        if storage._cdata not in self._known:
            memory = self.recorded if self.stand_in.is_capturing else self.normal
            nbytes = -(-storage.nbytes() // BLOCK) * BLOCK
            memory.take(nbytes)
            self.peak = max(self.peak, self.held)
            if self.held > self._memory:
                memory.give(nbytes)
                raise torch.OutOfMemoryError(f"{self.held} bytes are held, {nbytes} more do not fit")
            self._known.add(storage._cdata)
            weakref.finalize(storage, self._gone, storage._cdata, memory, nbytes)
        return value

    def _gone(self, storage: int, memory: Pool, nbytes: int) -> None:
        self._known.discard(storage)
        memory.give(nbytes)

    @property
    def held(self) -> int:
        """Bytes on the device now. What a recording once needed stays its own."""
        return self.normal.live + self.recorded.most

    def _replace_cuda(self) -> None:
        """What programs ask of torch.cuda, beside what the stand-in answers."""
        self.stand_in = stand_in = StandIn(self._patch)

        class GpuEvent(Event):
            def __init__(self, **options: bool) -> None:
                super().__init__(stand_in, **options)

        self._patch.setattr(torch.cuda, "Event", GpuEvent)

        def launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
            name = executor.fn.__name__
            self.launched.add(name)
            for value in tree_flatten((args, kwargs))[0]:
                assert not isinstance(value, Tensor) or value.device == GPU, f"{name}: {value.device}"

        self._patch.setattr(GridExecutor, "__call__", launch)
        self._patch.setattr(
            FakeTensor, "tolist", lambda tensor: torch.zeros(tensor.shape).to(tensor.dtype).tolist()
        )
        total = SimpleNamespace(total_memory=self._memory, name="fake", multi_processor_count=132)
        for name, replacement in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "device": lambda _device: contextlib.nullcontext(),
            "set_device": lambda _device: None,
            "get_device_capability": lambda _device=None: (9, 0),
            "get_device_name": lambda _device=None: "fake",
            "get_device_properties": lambda _device=None: total,
            "empty_cache": lambda: None,
            "memory_reserved": lambda _device=None: self.held,
            "max_memory_reserved": lambda _device=None: self.peak,
            "reset_peak_memory_stats": self._reset,
            "set_per_process_memory_fraction": self._cap,
        }.items():
            self._patch.setattr(torch.cuda, name, replacement)

    def _reset(self, _device: Any = None) -> None:
        self.peak = self.held

    def _cap(self, share: float, _device: Any = None) -> None:
        self._memory = int(share * torch.cuda.get_device_properties(0).total_memory)


def _no_places(func: Any, mask: Tensor) -> Any:
    places = torch.empty(0, mask.ndim, dtype=torch.int64, device=mask.device)
    return places if func is _ATEN.nonzero.default else places.unbind(1)


def _all_of(index: Tensor | None) -> Tensor | None:
    """A mask as if it were True everywhere."""
    if index is None or index.dtype is not torch.bool:
        return index
    assert index.ndim == 1
    return torch.arange(len(index), device=index.device)


def _nothing_of(func: Any, tensor: Tensor) -> Any:
    if func is _ATEN.equal.default:
        return True
    if tensor.dtype is torch.bool:
        return False
    return 0.0 if tensor.is_floating_point() else 0


def _lend_guard() -> None:
    """torch asks a device's guard which device is the current one; without CUDA the CPU's answers as well."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if not guards[_CUDA_GUARD]:
        guards[_CUDA_GUARD] = guards[_CPU_GUARD]
