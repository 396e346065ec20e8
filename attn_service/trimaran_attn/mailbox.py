"""A queue between threads whose reader can wait for it together with sockets."""

from __future__ import annotations

import os
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Any thread puts, one takes; its descriptor is readable while something is in it."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, *items: T) -> None:
        """Append items and wake the reader, once for all of them."""
        if items:
            self._items.extend(items)
            os.eventfd_write(self._event, 1)

    def take_all(self) -> list[T]:
        """Everything that is in it now."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def fileno(self) -> int:
        """For a poll; never read from it."""
        return self._event

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._event)
