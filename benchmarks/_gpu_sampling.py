"""Tokens drawn on the GPU: those of the host's sampler, on fresh random logits, and what a draw takes."""

from __future__ import annotations

from typing import Any

import torch
from _gpu_bench import Bench
from torch import Tensor
from trimaran.wire import SamplingParams
from trimaran_attn.drawing import DRAW_FIELDS, NOT_WANTED, draw_now, fill_draws
from trimaran_attn.draws import Draw
from trimaran_attn.sampler import Sampler
from trimaran_kernels.gpu.sampling import draw
from trimaran_kernels.gpu.sampling_inputs import NOT_FINITE, DrawInputs
from trimaran_kernels.gpu.sampling_inputs import NOT_WANTED as NO_TOKEN

VOCAB, ROWS = 129280, 8
SMALL_VOCAB, QUICK_WAYS = 300, ("greedy", "temperature 1", "top-k 20")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "temperature 0.6, top-p 0.95": {"temperature": 0.6, "top_p": 0.95},
    "top-p 0.9999": {"top_p": 0.9999},
    "top-k 20": {"temperature": 1.3, "top_k": 20},
    "top-k 900 at 40": {"temperature": 40.0, "top_k": 900},
    "top-k 10000, top-p 0.7, min-p": {"top_k": 10_000, "top_p": 0.7, "min_p": 1e-3},
    "min-p 0.05": {"min_p": 0.05},
}
PLACES = 3
"""Tokens so near to each other, in the order in which they are drawn, may stand in for each other: host and
GPU round e^x on their own, which turns nearly equal tokens round and moves the borders between them."""


def check_sampling(bench: Bench) -> None:
    """Every way, with one seed for each row; rows that are no numbers, and those that others draw."""
    vocab, rows = (SMALL_VOCAB, 1) if bench.tiny else (VOCAB, ROWS)
    for name in QUICK_WAYS if bench.tiny else WAYS:
        for kind, scale in (("peaked", 3.0),) if bench.tiny else (("peaked", 3.0), ("flat", 0.3)):
            with bench.part(f"sampling {name}, {kind}"):
                check_way(bench, name, kind, _logits(bench, rows, vocab) * scale)
    with bench.part("sampling rows apart"):
        _check_rows_apart(bench, _logits(bench, 3, vocab))


def measure_sampling(bench: Bench) -> None:
    """A step's last launch: its floor is the logits read once. They are in the cache, as behind the head."""
    for name in ("greedy", "temperature 1", "temperature 0.6, top-p 0.95", "top-k 20"):
        for rows in (1, ROWS):
            with bench.part(f"sampling {name}"):
                _time_way(bench, name, rows)


def check_way(bench: Bench, name: str, kind: str, logits: Tensor) -> None:
    """One of `WAYS`, on a kind of logits [R, vocab]."""
    params = WAYS[name]
    seeds = torch.randint(0, 1 << 62, (len(logits),)).tolist()
    samplers = [Sampler(SamplingParams(seed=seed, **params), (), ()) for seed in seeds]
    drawn = draw_now(draw, logits, [_draw_of(sampler) for sampler in samplers]).tolist()
    on_host = logits.cpu()
    filters = any(key in params for key in ("top_k", "top_p", "min_p"))
    apart = [
        _places_apart(row, sampler.draw(row).token, token, by_size=filters)
        for row, sampler, token in zip(on_host, samplers, drawn, strict=True)
    ]
    limit = PLACES if params.get("temperature", 1.0) else 0
    bench.check(f"sampling {name}, {len(logits)} {kind} rows", max(apart), limit, unit="places")


def _check_rows_apart(bench: Bench, logits: Tensor) -> None:
    """What is wrong in a row stays there."""
    best = int(logits[1].argmax())
    logits[0, -1], logits[2] = torch.nan, torch.nan
    ways = [Draw(1.0, 5, share=0.3), Draw(0.0), NOT_WANTED]
    tokens = draw_now(draw, logits, ways).tolist()
    if tokens != [NOT_FINITE, best, NO_TOKEN]:
        bench.fail(f"sampling: {tokens} from a row with NaN, one whose best is {best}, and one not wanted")


def _places_apart(logits: Tensor, expected: int, got: int, *, by_size: bool) -> int:
    """Of two tokens, in order of id, or of their logits; as far as can be if one is none."""
    if not 0 <= got < len(logits):
        return len(logits)
    if not by_size:
        return abs(got - expected)
    low, high = sorted((float(logits[got]), float(logits[expected])))
    between = int(((logits > low) & (logits < high)).sum())
    return 0 if got == expected else between + 1


def _time_way(bench: Bench, name: str, rows: int) -> None:
    logits = _logits(bench, rows, VOCAB) * 3
    samplers = [Sampler(SamplingParams(seed=row, **WAYS[name]), (), ()) for row in range(rows)]
    fields = {key: torch.zeros(rows, dtype=dtype) for key, dtype in DRAW_FIELDS.items()}
    fill_draws({key: field.numpy() for key, field in fields.items()}, [_draw_of(one) for one in samplers])
    wanted = DrawInputs(**{key: field.to(bench.device) for key, field in fields.items()})
    out = torch.empty(rows, dtype=torch.int32, device=bench.device)
    bench.time(f"sampling {name}, {rows} rows", lambda: draw(logits, wanted, out), nbytes=logits.nbytes)


def _draw_of(sampler: Sampler) -> Draw:
    way = sampler.next_draw()
    assert way is not None
    return way


def _logits(bench: Bench, rows: int, vocab: int) -> Tensor:
    return torch.randn(rows, vocab, device=bench.device)
