"""Which pages hold which tokens, so that requests with a common beginning share its pages. No torch here.

The latents of a token depend on the tokens up to it and on nothing else. So a full page is known by the hash
of its tokens and of all before them: its key is blake2b(key of the page before it, its tokens). Pages of one
key hold the same tokens at the same positions: nobody finds a collision in 256 bits, not on purpose either.

Only full pages are shared, and a full page is never written again. A request that holds a known page holds
all pages before it, and pages become idle from the last to the first: so the end of a chain is forgotten
before its beginning, and what is left can always be found.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

from trimaran_attn.pages import PageAllocator
from trimaran_attn.request import Request


class PrefixCache:
    """Finds computed pages by their tokens.

    Args:
        pages: the allocator, which keeps the pages that are known here until it needs them.
        page_size: tokens per page.
        enabled: without it no page is ever found.
    """

    def __init__(self, pages: PageAllocator, page_size: int, *, enabled: bool = True) -> None:
        self._pages = pages
        self._page_size = page_size
        self._enabled = enabled
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def match(self, request: Request) -> list[int]:
        """The longest chain of known pages that the request's reusable tokens begin with."""
        found: list[int] = []
        if self._enabled:
            for index in range(request.n_reusable // self._page_size):
                page = self._page_of.get(self._key(request, index))
                if page is None:
                    break
                found.append(page)
        return found

    def register(self, request: Request, n_before: int) -> None:
        """Make known the pages that the request filled since `n_before` of its tokens were computed.

        If another request computed the same page meanwhile, this one shares that, and its own is free.
        """
        if not self._enabled:
            return
        for index in range(n_before // self._page_size, request.n_computed // self._page_size):
            page, key = request.pages[index], self._key(request, index)
            known = self._page_of.setdefault(key, page)
            if known == page:
                self._key_of[page] = key
                self._pages.keep(page, self._forget)
            else:
                self._pages.share([known])
                self._pages.release([page])
                request.pages[index] = known

    def drop(self, request: Request) -> None:
        """Forget all pages of a request, as their content is not to be trusted."""
        for page in request.pages:
            if page in self._key_of:
                self._forget(page)
                self._pages.unkeep(page)

    def is_common(self, request: Request, other: Request, index: int) -> bool:
        """Whether `request` could use the page at `index` of `other`, once that is computed."""
        end = (index + 1) * self._page_size
        if not self._enabled or end > request.n_reusable or end > other.n_tokens:
            return False
        return self._key(request, index) == self._key(other, index)

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]

    def _key(self, request: Request, index: int) -> bytes:
        keys = request.page_keys
        while len(keys) <= index:
            start = len(keys) * self._page_size
            tokens = array("q", request.tokens(start, start + self._page_size))
            assert len(tokens) == self._page_size, "only full pages have keys"
            parent = keys[-1] if keys else b""
            keys.append(blake2b(parent + tokens.tobytes(), digest_size=32).digest())
        return keys[index]
