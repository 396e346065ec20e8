"""Which beginnings of prompts an engine has seen: there its cache saves work."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

BLOCK = 64
"""Tokens: a page of the engine's cache, which reuses whole pages only."""

CAPACITY = 1 << 16
"""Blocks remembered for an engine, 4 million tokens: more than its cache holds. They take some 10 MB."""


def block_keys(ids: Sequence[int]) -> list[bytes]:
    """A key for each whole block of a prompt, of the block and all before it."""
    keys: list[bytes] = []
    previous = b""
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        block = array("I", ids[start : start + BLOCK]).tobytes()
        previous = blake2b(previous + block, digest_size=16).digest()
        keys.append(previous)
    return keys


class SeenPrefixes:
    """The blocks that one engine computed lately; the longest unused are forgotten first.

    Blocks of a prompt that is under way count as known until it is settled, but only those of an accepted one
    are remembered.

    Args:
        capacity: blocks remembered.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        self._under_way: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._keys)

    def match(self, keys: Sequence[bytes]) -> int:
        """How many of the first blocks are known."""
        return next((index for index, key in enumerate(keys) if not self._knows(key)), len(keys))

    def expect(self, keys: Sequence[bytes]) -> None:
        """A prompt was sent to the engine; to be settled, whatever becomes of it."""
        self._under_way.update(keys)

    def settle(self, keys: Sequence[bytes]) -> None:
        """A prompt that was expected is under way no longer: it was accepted, and added; or it was not."""
        self._under_way.subtract(keys)
        for key in keys:
            if self._under_way[key] <= 0:
                del self._under_way[key]

    def add(self, keys: Sequence[bytes]) -> None:
        """Remember blocks; of a chain the last is forgotten before the first, as in the engine's cache."""
        for key in reversed(keys):
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._capacity:
            self._keys.popitem(last=False)

    def clear(self) -> None:
        """The engine lost its cache."""
        self._keys.clear()

    def _knows(self, key: bytes) -> bool:
        return key in self._keys or key in self._under_way
