from __future__ import annotations

import pytest
from trimaran_attn.pages import PageAllocator, pages_for


def test_pages_for_rounds_up() -> None:
    assert [pages_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_the_lowest_free_pages_go_first() -> None:
    pages = PageAllocator(6)
    first = pages.allocate(4)
    assert first == [0, 1, 2, 3]
    pages.release([1, 2])
    assert pages.allocate(3) == [1, 2, 4]
    assert pages.n_free == 1


def test_a_shared_page_is_free_only_after_its_last_holder() -> None:
    pages = PageAllocator(2)
    (page,) = pages.allocate(1)
    pages.share([page])
    pages.release([page])
    assert (pages.n_free, pages.references(page)) == (1, 1)
    pages.release([page])
    assert pages.n_free == 2


def test_kept_pages_are_idle_until_no_free_one_is_left() -> None:
    pages = PageAllocator(4)
    forgotten: list[int] = []
    held = pages.allocate(3)
    for page in (0, 1):
        pages.keep(page, forgotten.append)
    pages.release(held)
    assert pages.n_free == 4
    assert pages.allocate(2) == [2, 3]
    assert forgotten == []
    pages.share([0])
    assert (pages.n_free, pages.references(0)) == (1, 1)
    assert pages.allocate(1) == [1]
    assert forgotten == [1]
    pages.unkeep(0)
    pages.release([0])
    assert pages.allocate(1) == [0]
    assert forgotten == [1]


def test_idle_pages_go_the_oldest_first_and_of_one_request_the_last_first() -> None:
    pages = PageAllocator(4)
    forgotten: list[int] = []
    first, second = pages.allocate(2), pages.allocate(2)
    for page in first + second:
        pages.keep(page, forgotten.append)
    pages.release(second)
    pages.release(first)
    assert pages.allocate(3) == [1, 2, 3]
    assert forgotten == [3, 2, 1]


def test_misuse_is_caught() -> None:
    pages = PageAllocator(2)
    with pytest.raises(AssertionError, match="3 pages asked, 2 free"):
        pages.allocate(3)
    with pytest.raises(AssertionError, match="freed twice"):
        pages.release([0])
    with pytest.raises(AssertionError, match="cannot be shared"):
        pages.share([0])
    with pytest.raises(AssertionError, match="cannot be kept"):
        pages.keep(0, lambda _: None)
