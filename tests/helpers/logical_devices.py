"""Several devices on a machine that has one: torch forgets the N of `cpu:N`, this mode remembers it.

Inside the mode a tensor made on, or moved to, `cpu:1` says that it is there; so does whatever is computed
from it. An operation on tensors of two devices, or of a device and the host, fails, as it would with GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HOST = torch.device("cpu")


class LogicalDevices(TorchFunctionMode):
    """Use as a context manager around all that makes or uses tensors.

    Attributes:
        touched: devices on which anything was computed, in order, without repetitions in a row.
        crossed: copies from one of them into a tensor of another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[torch.device] = []
        self.crossed = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return device_of(args[0])
        if func in (Tensor.to, Tensor.cpu):
            target = next(_devices((args, kwargs)), None) if func is Tensor.to else HOST
            return _moved(func(*args, **kwargs), args[0], target)
        if func is Tensor.copy_:
            return self._copied(func(*args, **kwargs), args[1])
        places = {device_of(tensor) for tensor in _tensors((args, kwargs))}
        assert len(places) <= 1, f"{func} mixes {sorted(map(str, places))}"
        place = next(iter(places), kwargs.get("device") or HOST)
        self._note(place)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            tensor.logical_device = place  # type: ignore[attr-defined]
        return result

    def _copied(self, target: Tensor, source: Tensor) -> Tensor:
        """The one way, beside `to`, in which values cross."""
        self._note(device_of(target))
        if device_of(source) not in (HOST, device_of(target)):
            self.crossed += 1
        return target

    def _note(self, place: torch.device) -> None:
        if place != HOST and self.touched[-1:] != [place]:
            self.touched.append(place)


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor is."""
    place: torch.device = tensor.__dict__.get("logical_device", HOST)
    return place


def _moved(result: Tensor, source: Tensor, target: torch.device | None) -> Tensor:
    place = device_of(source) if target is None else torch.device(target)
    if result is source and place != device_of(source):
        result = source.clone()
    result.logical_device = place  # type: ignore[attr-defined]
    return result


def _tensors(value: Any) -> Iterator[Tensor]:
    yield from _leaves(value, lambda leaf: isinstance(leaf, Tensor))


def _devices(value: Any) -> Iterator[torch.device]:
    yield from _leaves(value, lambda leaf: isinstance(leaf, torch.device))


def _leaves(value: Any, wanted: Callable[[Any], bool]) -> Iterator[Any]:
    if wanted(value):
        yield value
    elif isinstance(value, Mapping):
        yield from _leaves(list(value.values()), wanted)
    elif isinstance(value, Iterable) and not isinstance(value, (str, Tensor)):
        for item in value:
            yield from _leaves(item, wanted)
