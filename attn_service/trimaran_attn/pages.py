"""Bounded pages of the KV cache: who holds which page. Pure bookkeeping, the tensors live in `kv_cache`."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class PageAllocator:
    """Hands out page numbers 0 … n_pages - 1 with reference counts, so that requests may share a page.

    The lowest free pages go first: a request's pages are then mostly consecutive, and readers of the cache
    can take views instead of gathering copies.
    """

    def __init__(self, n_pages: int) -> None:
        assert n_pages > 0
        self._references = [0] * n_pages
        self._free = list(range(n_pages))

    @property
    def n_pages(self) -> int:
        """All pages, free or held."""
        return len(self._references)

    @property
    def n_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages with one reference each. The caller checked `n_free` before."""
        assert 0 <= count <= self.n_free, f"{count} pages asked, {self.n_free} free"
        pages = [heapq.heappop(self._free) for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add one reference to each of these held pages."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is free and cannot be shared"
            self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop one reference of each page; a page without references is free again."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} freed twice"
            self._references[page] -= 1
            if self._references[page] == 0:
                heapq.heappush(self._free, page)

    def references(self, page: int) -> int:
        """How many holders a page has."""
        return self._references[page]


def pages_for(n_tokens: int, page_size: int) -> int:
    """Pages that `n_tokens` tokens fill, the last one perhaps in part."""
    return -(-n_tokens // page_size)
