"""Shards that make up the model, and shards that do not."""

from __future__ import annotations

import pytest
from trimaran.errors import PeerMismatchError
from trimaran.wire import Ready
from trimaran_attn.experts_client.coverage import check_coverage

ALL = (0, 512)


def ready(experts: tuple[int, int], columns: tuple[int, int] = ALL) -> Ready:
    return Ready(shard="", isa="", experts=experts, columns=columns, n_columns=512, threads=1)


def check(*shards: Ready) -> None:
    check_coverage({f"end-{index}": shard for index, shard in enumerate(shards)}, 8)


@pytest.mark.parametrize(
    "shards",
    [
        [ready((0, 8))],
        [ready((5, 8)), ready((0, 5))],
        [ready((0, 8), (256, 512)), ready((0, 8), (0, 256))],
        [ready((0, 4)), ready((4, 8), (0, 128)), ready((4, 8), (128, 512))],
        [ready((0, 8), (first, first + 128)) for first in (0, 128, 256, 384)],
    ],
)
def test_what_makes_up_the_model(shards: list[Ready]) -> None:
    check(*shards)


@pytest.mark.parametrize(
    ("shards", "complaint"),
    [
        ([ready((0, 4))], "expert 4 is on no shard"),
        ([ready((1, 8))], "expert 0 is on no shard"),
        ([ready((0, 4)), ready((5, 8))], "expert 4 is on no shard"),
        ([ready((0, 5)), ready((4, 8))], "end-1: experts 4-4 are twice"),
        ([ready((0, 8), (0, 256))], "expert 0, columns 256-511 is on no shard"),
        ([ready((0, 8), (256, 512))], "expert 0, columns 0-255 is on no shard"),
        ([ready((0, 8), (0, 128)), ready((0, 8), (256, 512))], "columns 128-255 is on no shard"),
        ([ready((0, 8), (0, 256)), ready((0, 8), (128, 512))], "experts 0-7, columns 128-255 are twice"),
        ([ready((0, 8)), ready((0, 8), (0, 256))], "experts 0-7, columns 0-255 are twice"),
        ([ready((0, 4)), ready((4, 8), (0, 256))], "expert 4, columns 256-511 is on no shard"),
    ],
)
def test_what_does_not(shards: list[Ready], complaint: str) -> None:
    with pytest.raises(PeerMismatchError, match=complaint):
        check(*shards)
