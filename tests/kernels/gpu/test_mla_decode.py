from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE, ON_GPU
from trimaran_kernels.gpu import mla_decode
from trimaran_kernels.gpu.latents import describe_entry, view_layer
from trimaran_kernels.gpu.mla_decode import Block, count_splits, decode_attention
from trimaran_kernels.gpu.mla_reference import decode_reference, entries_reference, store_reference
from trimaran_kernels.gpu.store import store_latents

LATENT, ROPE, PAGE = 256, 16, 16
BF16_STEP = 2**-8 if ON_GPU else 2**-7  # the interpreter cuts bits off where a GPU rounds
BYTES = {"f32": 4 * 272, "bf16": 2 * 272, "f16": 2 * 272, "fp8": 256 + 2 * 4 + 32, "int8": 256 + 2 * 4 + 32}
ERROR = {"f32": 1e-5, "f16": 5e-3, "bf16": 2e-2, "fp8": 1e-5, "int8": 1e-5}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less to interpret, and several steps and splits of a short context."""
    if not ON_GPU:
        monkeypatch.setattr(mla_decode, "choose_block", lambda *_: Block(16, 16, 4, 2))
        monkeypatch.setattr(mla_decode, "PROGRAMS", 8)


class Pages:
    """A layer of a cache with random entries, written by the kernel under test."""

    def __init__(self, kind: str, n_pages: int, dtype: torch.dtype = torch.float32) -> None:
        self.entry = describe_entry(kind, LATENT, ROPE, PAGE)
        self.raw = torch.full((n_pages, PAGE, BYTES[kind]), 0x7E, dtype=torch.uint8, device=DEVICE)
        self.views = view_layer(self.raw, kind)
        self.weight = torch.rand(LATENT, device=DEVICE) + 0.5

    def write(self, slots: torch.Tensor) -> torch.Tensor:
        """Random tokens to `slots`; what they are before the cache's rounding."""
        kv = torch.randn(len(slots), LATENT + ROPE, device=DEVICE) * 3
        angles = torch.rand(len(slots), ROPE // 2, device=DEVICE) * 6
        store_latents(kv, self.weight, 1e-6, angles.cos(), angles.sin(), slots, self.views, self.entry)
        return store_reference(kv, self.weight, 1e-6, angles.cos(), angles.sin(), self.entry)


@pytest.mark.parametrize("kind", BYTES)
def test_entries_are_normed_rotated_and_rounded(kind):
    torch.manual_seed(1)
    pages = Pages(kind, 3)
    slots = torch.tensor([5, 16, 47, 0], device=DEVICE)
    before = pages.raw.clone()
    expected = pages.write(slots)
    got = entries_reference(pages.views, pages.entry, slots)
    step = {"f32": 1e-6, "f16": 2**-11, "bf16": BF16_STEP, "fp8": 2**-4, "int8": 0}[kind]
    group = expected[:, :LATENT].view(4, -1, 128).abs().amax(-1).repeat_interleave(128, 1)
    floor = group / {"fp8": 448 * 64, "int8": 127 * 1.99}.get(kind, 1e7)
    error = (got - expected)[:, :LATENT].abs()
    assert (error <= 1.01 * (step * expected[:, :LATENT].abs() + floor)).all()
    torch.testing.assert_close(got[:, LATENT:], expected[:, LATENT:], rtol=BF16_STEP, atol=1e-5)
    untouched = torch.ones(3 * PAGE, dtype=torch.bool)
    untouched[slots.cpu()] = False
    assert torch.equal(pages.raw.flatten(0, 1)[untouched], before.flatten(0, 1)[untouched])


def test_fp8_codes_are_torchs():
    torch.manual_seed(2)
    pages = Pages("fp8", 1)
    slots = torch.arange(8, device=DEVICE)
    expected = pages.write(slots)[:, :LATENT]
    scales = expected.view(8, -1, 128).abs().amax(-1) / 448
    codes = (expected / scales.repeat_interleave(128, 1)).clamp(-448, 448).to(torch.float8_e4m3fn)
    got = pages.raw[0, :8, :LATENT].contiguous().view(torch.float8_e4m3fn).float()
    # The reference divides in another order: a value on the edge may fall to the other side.
    assert (got == codes.float()).float().mean() > 0.995


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_latent_that_is_no_number_shows_when_it_is_read():
    pages = Pages("fp8", 1)
    kv = torch.zeros(1, LATENT + ROPE, device=DEVICE)
    kv[0, 3] = torch.nan
    angles = torch.zeros(1, ROPE // 2, device=DEVICE)
    slots = torch.tensor([7], device=DEVICE)
    store_latents(kv, pages.weight, 1e-6, angles.cos(), angles.sin(), slots, pages.views, pages.entry)
    assert entries_reference(pages.views, pages.entry, slots)[0, :LATENT].isnan().all()


@pytest.mark.parametrize("kind", ["f32", "f16", "fp8", "int8"])
def test_ragged_batches(kind):
    """Three requests: one entry, a whole page, two splits; the last one has two tokens."""
    torch.manual_seed(3)
    pages = Pages(kind, 8)
    pages.write(torch.arange(8 * PAGE, device=DEVICE))
    rows = [[4, 0, 0, 0, 0], [2, 0, 0, 0, 0], [3, 5, 1, 7, 6]]
    tables = torch.tensor(rows, dtype=torch.int32, device=DEVICE)
    requests = torch.tensor([0, 1, 2, 2], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([1, 16, 69, 70], dtype=torch.int32, device=DEVICE)
    dtype = torch.float16 if kind == "f16" else torch.float32
    queries = torch.randn(4, 3, LATENT + ROPE, device=DEVICE).to(dtype)
    arguments = (queries, pages.views, pages.entry, tables, requests, lengths)
    got = decode_attention(*arguments, longest=70, scale=0.05)
    expected = decode_reference(*arguments, scale=0.05)
    assert got.dtype == dtype
    assert (got.float() - expected).norm() / expected.norm() < ERROR[kind]


def test_a_row_does_not_depend_on_its_batch_mates():
    """Nor on the longest context there could be, once that has all the splits: a launch can be replayed."""
    torch.manual_seed(5)
    pages = Pages("f32", 16)
    pages.write(torch.arange(16 * PAGE, device=DEVICE))
    tables = torch.arange(16, dtype=torch.int32, device=DEVICE).expand(2, 16).contiguous()
    requests = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    queries = torch.randn(2, 16, LATENT + ROPE, device=DEVICE)
    results = []
    for other, longest in ((3, 256), (250, 256), (90, 9000)):
        lengths = torch.tensor([90, other], dtype=torch.int32, device=DEVICE)
        arguments = (queries, pages.views, pages.entry, tables, requests, lengths)
        results.append(decode_attention(*arguments, longest=longest, scale=0.05)[0])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_large_scores_do_not_overflow():
    torch.manual_seed(4)
    pages = Pages("f32", 2)
    pages.write(torch.arange(2 * PAGE, device=DEVICE))
    tables = torch.tensor([[1, 0]], dtype=torch.int32, device=DEVICE)
    one = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    queries = 100 * torch.randn(1, 16, LATENT + ROPE, device=DEVICE)
    arguments = (queries, pages.views, pages.entry, tables, one, one + 30)
    got = decode_attention(*arguments, longest=30, scale=1.0)
    torch.testing.assert_close(got, decode_reference(*arguments, scale=1.0), rtol=1e-4, atol=1e-4)


def test_splits_fill_a_gpu_and_are_not_too_short(monkeypatch):
    monkeypatch.setattr(mla_decode, "PROGRAMS", 264)
    assert count_splits(1, 2, 64) == 1
    assert count_splits(300, 2, 64) == 2
    assert count_splits(128 << 10, 2, 64) == 132
    assert count_splits(32 << 10, 16, 64) == 17
    assert count_splits(32 << 10, 300, 64) == 1
