"""Bounded pages of the KV cache: who holds which page. Pure bookkeeping, the tensors live in `kv_cache`."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

Forget = Callable[[int], None]


class PageAllocator:
    """Hands out page numbers 0 … n_pages - 1 with reference counts, so that requests may share a page.

    A page is held, free, or idle: kept for its content although nobody holds it. Idle pages are handed out
    when no free one is left, the one that is idle for longest first. The lowest free pages go first: a
    request's pages are then mostly consecutive, and readers of the cache can take views instead of gathering
    copies.
    """

    def __init__(self, n_pages: int) -> None:
        assert n_pages > 0
        self._references = [0] * n_pages
        self._free = list(range(n_pages))
        self._kept: dict[int, Forget] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def n_pages(self) -> int:
        """All pages, free, idle or held."""
        return len(self._references)

    @property
    def n_free(self) -> int:
        """Pages that nobody holds; some of them may be kept for their content until they are needed."""
        return len(self._free) + len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages with one reference each, in ascending order. The caller checked `n_free`."""
        assert 0 <= count <= self.n_free, f"{count} pages asked, {self.n_free} free"
        pages = sorted(self._take() for _ in range(count))
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add one reference to each of these held or idle pages."""
        for page in pages:
            held = self._references[page] > 0
            assert held or page in self._idle, f"page {page} is free and cannot be shared"
            if not held:
                del self._idle[page]
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Drop one reference of each page; a page without references is free again, or idle if it is kept.

        The last of `pages` counts as idle for longest: of a request's pages in order of position, the later
        are of no use without the earlier.
        """
        for page in reversed(pages):
            assert self._references[page] > 0, f"page {page} freed twice"
            self._references[page] -= 1
            if self._references[page] > 0:
                continue
            if page in self._kept:
                self._idle[page] = None
            else:
                heapq.heappush(self._free, page)

    def keep(self, page: int, forget: Forget) -> None:
        """Keep the content of this held page when nobody holds it any more.

        `forget` is called with the page when it is handed out again, for other content.
        """
        assert self._references[page] > 0, f"page {page} is free and cannot be kept"
        assert page not in self._kept, f"page {page} is kept already"
        self._kept[page] = forget

    def unkeep(self, page: int) -> None:
        """The content of this held page is not wanted any more; `forget` is not called."""
        assert self._references[page] > 0, f"page {page} is not held"
        del self._kept[page]

    def references(self, page: int) -> int:
        """How many holders a page has."""
        return self._references[page]

    def _take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        page, _ = self._idle.popitem(last=False)
        self._kept.pop(page)(page)
        return page


def pages_for(n_tokens: int, page_size: int) -> int:
    """Pages that `n_tokens` tokens fill, the last one perhaps in part."""
    return -(-n_tokens // page_size)
