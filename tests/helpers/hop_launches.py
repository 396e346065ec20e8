"""The hop's GPU kernels, launched as DeepSeek-V3 launches them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from trimaran.arena import ArenaDims, ArenaLayout
from trimaran_kernels.gpu.hop import HopState, SlotPlace, submit, wait

HIDDEN, TOP_K, TOKENS = 7168, 8, 16


def hop_launches() -> dict[str, Callable[[], object]]:
    cases: dict[str, Callable[[], object]] = {}
    state = HopState.make(2, 4, torch.device("cpu"))
    layout = ArenaLayout.of(ArenaDims(HIDDEN, TOP_K, 512, 4, "bf16"))
    place = SlotPlace(0, 4096, layout.x, layout.ids, layout.weights, layout.y, is_bf16=True)
    x = torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16)
    ids, weights = torch.empty(TOKENS, TOP_K, dtype=torch.int32), torch.empty(TOKENS, TOP_K)
    live = torch.empty(1, dtype=torch.int32)
    cases["hop submit"] = lambda: submit(state, place, 3, x, ids, weights, live)
    cases["hop wait"] = lambda: wait(state, place, 3, x, live, 5.0)
    return cases
