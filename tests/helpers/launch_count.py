"""How many kernels a piece of the forward pass would launch on a GPU, counted where there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import GridExecutor

# These make tensors, or look at them in another way: nothing runs on a device. `to` does where it converts.
_FREE = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided",
    "expand", "flatten", "new_empty", "permute", "reshape", "select", "slice", "split", "split_with_sizes",
    "squeeze", "t", "to", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        if name not in _FREE:
            self._counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_launches() -> Iterator[Counter[str]]:
    """Counts torch's operations and Triton's launches by name, while it is open; one launch each at least.

    What Triton's interpreter does to compute a kernel is left out.
    """
    counts: Counter[str] = Counter()
    operations = _Operations(counts)
    run = GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        counts[self.fn.__name__] += 1
        operations.__exit__(None, None, None)
        try:
            return run(self, *args, **kwargs)
        finally:
            operations.__enter__()

    with patch.object(GridExecutor, "__call__", launch), operations:
        yield counts
