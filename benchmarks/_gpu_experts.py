"""Experts on the GPU: the kernels against their reference, their speed, the bus, and a streamed layer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from _gpu_bench import Bench, seconds_of
from _gpu_inputs import poison, random_matrix, random_tokens
from torch import Tensor
from trimaran.gguf import GGMLType, GGUFFile
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran_attn.gpu_experts.resident import ExpertFile
from trimaran_attn.gpu_experts.stream_copy import CudaCopier
from trimaran_attn.gpu_experts.streamer import Streamer
from trimaran_attn.registry import Registry, Site
from trimaran_attn.weights import QuantTensor, Weights
from trimaran_kernels.gpu.grouped import PLACE_BY_PLACE, grouped_experts
from trimaran_kernels.gpu.grouped_reference import grouped_reference
from trimaran_kernels.gpu.grouped_stack import ExpertStack

HIDDEN, WIDE, EXPERTS, TOP_K = 7168, 2048, 256, 8
BUS_BYTES, STREAMED_TOKENS = 256 << 20, 128
LIMITS = {torch.bfloat16: 2e-2, torch.float32: 1e-5}
_Q4_K_M = (GGMLType.Q4_K, GGMLType.Q4_K, GGMLType.Q6_K)
_SMALL = (GGMLType.Q4_0, GGMLType.Q4_0, GGMLType.Q8_0)  # blocks of 32, for the interpreter's sizes
_MIXES = (
    _Q4_K_M,
    (GGMLType.Q5_K, GGMLType.Q5_K, GGMLType.Q8_0),
    (GGMLType.IQ4_XS, GGMLType.IQ4_XS, GGMLType.IQ4_NL),
    (GGMLType.Q4_0, GGMLType.Q6_K, GGMLType.Q4_K),
)
Types = tuple[GGMLType, GGMLType, GGMLType]


def check_experts(bench: Bench) -> None:
    """Both ways of a batch, every type, residents that some, all or none of the tokens meet."""
    hidden, wide = (64, 32) if bench.tiny else (2048, 768)
    for types in (_SMALL,) if bench.tiny else _MIXES:
        stack = _random_stack(types, 3, hidden, wide, bench.device)
        for n in (1,) if bench.tiny else (1, 70) if types != _Q4_K_M else (1, PLACE_BY_PLACE, 9, 70, 600):
            with bench.part(f"experts {types[0].name} {types[2].name} {n}"):
                _check(bench, types, stack, n)
    if not bench.tiny:
        with bench.part("experts streamed"):
            _check_stream(bench)


def _check(bench: Bench, types: Types, stack: ExpertStack, n: int) -> None:
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    x = random_tokens(n, stack.hidden, bench.device, dtype)
    ids, weights = _random_route(n, 16, 4, bench.device)
    slots = _table(16, (2, 7, 11), bench.device)
    name = f"experts {types[0].name} {types[2].name} {n}"
    expected = grouped_reference(x, ids, weights, slots, stack)
    poison(4 * expected.numel(), bench.device)
    bench.check(name, _error(grouped_experts(x, ids, weights, slots, stack), expected), LIMITS[dtype])
    again = [grouped_experts(x, ids, weights, slots, stack) for _ in range(2)]
    bench.check(f"{name}, again", float((again[0] - again[1]).abs().max()), 0.0)
    none = grouped_experts(x, torch.full_like(ids, -1), weights * torch.nan, slots, stack)
    bench.check(f"{name}, none", float(none.abs().max()), 0.0)


def _check_stream(bench: Bench) -> None:
    """Experts of a file, through both buffers and a stream of their own, against the reference."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_model(Path(folder) / "m.gguf", "v3", mix="Q4_K_M", tokenizer=False)
        with GGUFFile.open(path) as model:
            file = _expert_file(model, bench.device)
            n, dtype = (2, torch.float32) if bench.tiny else (300, torch.bfloat16)
            x = random_tokens(n, file.shapes[0][1], bench.device, dtype)
            ids, weights = _random_route(n, 16, 4, bench.device)
            stack, slots = file.stack(16, bench.device), _table(16, range(16), bench.device)
            for expert in range(16):
                stack.put(expert, file.matrices(expert))
            streamer = _streamer(file, bench.device, per_buffer=3)
            got = streamer.run(file, range(16), x, ids, weights)
            streamer.close()
            expected = grouped_reference(x, ids, weights, slots, stack)
            bench.check("experts streamed", _error(got, expected), LIMITS[dtype])


def measure_experts(bench: Bench) -> None:
    """V3's sizes in Q4_K_M: eight experts for a token, a layer's residents for a batch, the bus."""
    stacks = [_random_stack(_Q4_K_M, 8, HIDDEN, WIDE, bench.device) for _ in range(6)]
    turn = cycle(stacks)
    for n in (1, 4, 16):
        ids = torch.stack([torch.randperm(8, device=bench.device) for _ in range(n)]).int()
        _time(bench, f"grouped gemv Q4_K 8 experts, {n} tokens", turn, n, ids)
    large = cycle([_random_stack(_Q4_K_M, 32, HIDDEN, WIDE, bench.device)])
    for n in (64, 512, 4096):
        ids = torch.stack([torch.randperm(32, device=bench.device)[:TOP_K] for _ in range(n)]).int()
        _time(bench, f"grouped gemm Q4_K 32 experts, {n} tokens", large, n, ids)
    for measure in (_time_bus, _time_stream):
        with bench.part(measure.__name__):
            measure(bench)


def _time(bench: Bench, name: str, turn: cycle[ExpertStack], n: int, ids: Tensor) -> None:
    """All choices have a slot. Bytes: each used expert once."""
    stack = next(turn)
    x = random_tokens(n, HIDDEN, bench.device, torch.bfloat16)
    weights = torch.full(ids.shape, 1 / TOP_K, device=bench.device)
    slots = _table(EXPERTS, range(stack.n_slots), bench.device)
    bench.time(
        name,
        lambda: grouped_experts(x, ids, weights, slots, next(turn)),
        nbytes=stack.nbytes,
        operations=2 * ids.numel() * 3 * HIDDEN * WIDE,
    )


def _time_bus(bench: Bench) -> None:
    source = torch.empty(BUS_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=bench.device)
    seconds = seconds_of(lambda: target.copy_(source, non_blocking=True))
    bench.row("host to GPU, pinned", source.nbytes / seconds / 1e9, "GB/s", higher_is_better=True)


def _time_stream(bench: Bench) -> None:
    """16 experts of V3's size from a file in the page cache, with 64 tokens each."""
    with tempfile.TemporaryDirectory() as folder:
        file = _mapped_experts(Path(folder), 16)
        x = random_tokens(STREAMED_TOKENS, HIDDEN, bench.device, torch.bfloat16)
        ids, weights = _random_route(STREAMED_TOKENS, 16, TOP_K, bench.device)
        streamer = _streamer(file, bench.device)
        seconds = []
        for _ in range(4):
            torch.cuda.synchronize()
            start = time.perf_counter()
            streamer.run(file, range(16), x, ids, weights)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        streamer.close()
        best = sorted(seconds[1:])[1]
        bench.row("streamed layer, 16 experts of 64 tokens", best * 1e3, "ms")
        bench.row("streamed layer", 16 * file.cost.nbytes / best / 1e9, "GB/s", higher_is_better=True)


def _mapped_experts(folder: Path, n: int) -> ExpertFile:
    """Experts of V3's size in a file; what their bits say does not matter to the time."""
    shapes = ((WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE))
    tensors = []
    for number, (type_, (rows, columns)) in enumerate(zip(_Q4_K_M, shapes, strict=True)):
        path = folder / f"{number}"
        np.zeros(n * rows * type_.row_bytes(columns), np.uint8).tofile(path)
        raw = np.memmap(path, np.uint8, "r")
        tensors.append(QuantTensor(type_, (n, rows, columns), raw))
    return ExpertFile(0, n, shapes, tuple(tensors))


def _expert_file(model: GGUFFile, device: torch.device) -> ExpertFile:
    spec, weights = read_spec(model), Weights(model)
    registry = Registry(spec, weights, device, torch.bfloat16)
    return ExpertFile.of(
        Site("model.layers.2.mlp.experts", (), device, torch.bfloat16, spec, weights, registry)
    )


def _streamer(file: ExpertFile, device: torch.device, per_buffer: int = 4) -> Streamer:
    return Streamer(
        file.cost.nbytes,
        file.n_experts,
        device=device,
        copier=CudaCopier(device),
        compute=grouped_experts,
        per_buffer=per_buffer,
    )


def _random_stack(types: Types, n: int, hidden: int, wide: int, device: torch.device) -> ExpertStack:
    gate, up, down = types
    return ExpertStack(
        n,
        random_matrix(gate, n * wide, hidden, device),
        random_matrix(up, n * wide, hidden, device),
        random_matrix(down, n * hidden, wide, device),
    )


def _random_route(n: int, n_experts: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.rand(n, n_experts, device=device).argsort(1)[:, :top_k].int()
    return ids, torch.rand(n, top_k, device=device)


def _table(n_experts: int, residents: Sequence[int], device: torch.device) -> Tensor:
    """The slots of residents, in their order."""
    table = torch.full((n_experts,), -1, dtype=torch.int32)
    table[list(residents)] = torch.arange(len(residents), dtype=torch.int32)
    return table.to(device)


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
