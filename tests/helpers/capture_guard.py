"""Finds what a CUDA graph could not record: a host that looks at results, Python's data, shapes of data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from triton.runtime.interpreter import GridExecutor

LOOKS = {
    Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.cuda, Tensor.__bool__, Tensor.__int__,
    Tensor.__float__, Tensor.__index__, Tensor.__contains__, Tensor.__array__, torch.equal, torch.allclose,
}  # fmt: skip
"""The host waits for the device."""

MAKES = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.asarray}
"""The device would get what Python holds now, not what it will hold."""

SHAPES = {
    torch.nonzero, Tensor.nonzero, torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique,
    torch.repeat_interleave, Tensor.repeat_interleave,
}  # fmt: skip
"""The shape of the result depends on values."""


class NotCapturableError(AssertionError):
    """The guarded code did something that a graph would not do again."""


class CaptureGuard(TorchFunctionMode):
    """Within, whatever a CUDA graph cannot record raises NotCapturableError. Works on a CPU's tensors.

    What Triton's interpreter does to launch a kernel does not count: a graph records the launch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._launches = 0

    def __enter__(self) -> CaptureGuard:
        launch = GridExecutor.__call__

        def uninspected(executor: Any, *args: Any, **kwargs: Any) -> None:
            self._launches += 1
            try:
                launch(executor, *args, **kwargs)
            finally:
                self._launches -= 1

        self._patch.setattr(GridExecutor, "__call__", uninspected)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._patch.undo()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._launches:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if func in LOOKS or func in MAKES or self._has_data_shape(func, args, kwargs):
            raise NotCapturableError(f"{name} in a part of a step that is to be recorded")
        if func in {Tensor.__getitem__, Tensor.__setitem__} and _indexes_with_data(args[1]):
            raise NotCapturableError(f"{name} with a mask or with Python's numbers in a list")
        return func(*args, **kwargs)

    def _has_data_shape(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if func in SHAPES:
            repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
            return not (isinstance(repeats, int) and "repeat_interleave" in func.__name__)
        return func is torch.where and len(args) + len(kwargs) == 1


def _indexes_with_data(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, list) or (isinstance(part, Tensor) and part.dtype in {torch.bool, torch.uint8})
        for part in parts
    )
