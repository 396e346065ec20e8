from __future__ import annotations

import pytest
import torch
import trimaran_kernels
from trimaran.kv_format import KvFormat
from trimaran.synth import random_spec
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache, page_bytes

SPEC = random_spec("v3")
WIDTH = SPEC.kv_lora_rank + SPEC.qk_rope_head_dim
CPU = torch.device("cpu")


def slots(pages: list[int], n: int) -> torch.Tensor:
    return torch.tensor([pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE for i in range(n)])


def test_what_is_written_is_read_whatever_the_order_of_pages() -> None:
    cache = LatentCache(SPEC, 8, CPU, "f32")
    n = 2 * PAGE_SIZE + 5
    written = {}
    for pages in ([3, 4, 5], [7, 0, 2]):
        for layer in range(SPEC.n_layers):
            entries = torch.randn(n, WIDTH)
            cache.write(layer, slots(pages, n), entries)
            written[tuple(pages), layer] = entries
    for (pages_, layer), entries in written.items():
        assert torch.equal(cache.read(layer, pages_, n), entries)


def test_consecutive_pages_are_read_without_a_copy() -> None:
    cache = LatentCache(SPEC, 8, CPU, "f32")
    view = cache.read(0, [2, 3], PAGE_SIZE + 1)
    cache.write(0, slots([2, 3], 1), torch.full((1, WIDTH), 7.0))
    assert view[0, 0] == 7.0


def test_bytes_of_a_page() -> None:
    assert page_bytes(SPEC, "bf16") == SPEC.n_layers * PAGE_SIZE * (64 + 16) * 2
    codes, scales, keys = 64, 4, 16 * 2
    assert page_bytes(SPEC, "int8") == SPEC.n_layers * PAGE_SIZE * (codes + scales + keys)


@pytest.mark.parametrize("kind", ["f32", "bf16", "fp8", "int8"])
def test_the_kernels_store_the_bytes_of_the_reference_and_read_them_alike(kind: KvFormat) -> None:
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1))
    n, latent, pairs = PAGE_SIZE + 7, SPEC.kv_lora_rank, SPEC.qk_rope_head_dim // 2
    kv = torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1))
    cos, sin = torch.ones(n, pairs).numpy(), torch.zeros(n, pairs).numpy()
    where = slots([3, 1], n)

    def stored(kind: KvFormat) -> torch.Tensor:
        cache = LatentCache(SPEC, 4, CPU, kind)
        weight = torch.ones(latent).numpy()
        pages, index = cache.native(0), where.int().numpy()
        trimaran_kernels.store_latents(pool, pages, kv.numpy(), weight, 1e-6, cos, sin, index)
        return cache.read(0, [3, 1], n)

    exact = stored("f32")
    reference = LatentCache(SPEC, 4, CPU, kind)
    reference.write(0, where, exact)
    assert torch.equal(stored(kind), reference.read(0, [3, 1], n))
