"""Memory for packed weights."""

from __future__ import annotations

import numpy as np
import pytest
from trimaran_kernels import HugePages
from trimaran_kernels.memory import CACHE_LINE, HUGE_PAGE


@pytest.mark.parametrize("sizes", [[1, 63, 64, 65, 1000], [20 << 20, 20 << 20], [40 << 20, 7, 33 << 20, 9]])
def test_pieces_are_aligned_and_apart(sizes: list[int]) -> None:
    memory = HugePages()
    pieces = [memory.take(size) for size in sizes]
    for number, piece in enumerate(pieces):
        piece[:] = number
    for number, (size, piece) in enumerate(zip(sizes, pieces, strict=True)):
        assert piece.dtype == np.uint8
        assert len(piece) == size
        assert piece.ctypes.data % CACHE_LINE == 0
        assert (piece == number).all()


def test_blocks_start_on_a_huge_page() -> None:
    assert HugePages().take(100).ctypes.data % HUGE_PAGE == 0


def test_pieces_outlive_their_source() -> None:
    memory = HugePages()
    piece = memory.take(5 << 20)
    piece[:] = 7
    del memory
    assert (piece == 7).all()


def test_a_large_piece_does_not_waste_the_current_block() -> None:
    memory = HugePages()
    first = memory.take(CACHE_LINE)
    memory.take(50 << 20)
    assert memory.take(1).ctypes.data == first.ctypes.data + CACHE_LINE
