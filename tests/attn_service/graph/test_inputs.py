"""What a replayed step reads follows its requests' pages, however these change."""

from __future__ import annotations

import torch
from trimaran.wire import SamplingParams
from trimaran_attn.graph.inputs import DecodeInputs, InputShape
from trimaran_attn.kv_cache import PAGE_SIZE
from trimaran_attn.request import Request, State
from trimaran_attn.scheduler import Chunk

HIDDEN, NULL_PAGE = 4, 99


def make_request(pages: list[int]) -> Request:
    n = len(pages) * PAGE_SIZE
    request = Request("r", list(range(n - 1)), SamplingParams(), max_tokens=9, pages=pages, output_ids=[1])
    request.state, request.n_computed = State.RUNNING, n - 1
    return request


def tables(inputs: DecodeInputs, *requests: Request) -> list[list[int]]:
    chunks = [Chunk(request, request.n_computed, 1) for request in requests]
    inputs.fill(chunks, torch.zeros(len(chunks), HIDDEN), {})
    decode = inputs.stages[0].batch.decode
    assert decode is not None
    return decode.tables.tolist()


def test_tables_follow_pages_that_are_added_replaced_and_taken_away() -> None:
    shape = InputShape(2, 4 * PAGE_SIZE, HIDDEN, torch.float32, NULL_PAGE)
    inputs = DecodeInputs(shape, [torch.device("cpu")])
    request, other = make_request([3]), make_request([8, 9])
    assert tables(inputs, request)[0][:1] == [3]
    request.pages += [5, 6]
    assert tables(inputs, request, other)[0][:3] == [3, 5, 6]
    request.pages[1] = 7  # another request had computed the same page: theirs is shared
    rows = tables(inputs, request, other)
    assert (rows[0][:3], rows[1][:2]) == ([3, 7, 6], [8, 9])
    request.pages.clear()  # preempted, and begun anew
    request.pages += [1, 2, 4]
    assert tables(inputs, request)[0][:3] == [1, 2, 4]
    assert tables(inputs, request)[1][0] == NULL_PAGE
    assert tables(inputs, other, request)[1][:3] == [1, 2, 4]
