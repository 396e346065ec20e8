"""A whole random model on the GPU, in bfloat16 with quantised matrices, against the same model on the CPU."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import trimaran_kernels
from _gpu_bench import Bench
from torch import Tensor
from trimaran.gguf import GGUFFile
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran.wire import SamplingParams
from trimaran_attn.experts import build_local_experts
from trimaran_attn.kv_cache import LatentCache
from trimaran_attn.model.deepseek2 import build_model
from trimaran_attn.model.modules import register_modules
from trimaran_attn.registry import Registry
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_attn.weights import Weights

MODEL_LIMIT = 0.1
"""Of logits: bfloat16 activations through three layers, and near ties of the router that fall otherwise."""

PROMPT, STEPS = 100, 3
Form = Literal["naive", "absorbed"]


def check_models(bench: Bench) -> None:
    """Logits of a prompt and some single tokens, for each form of MLA and two of the cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_random_model(Path(folder) / "m.gguf", "v3", mix="Q4_K_M", tokenizer=False)
        for form in ("naive", "absorbed"):
            for kind in ("bf16", "fp8"):
                with bench.part(f"model {form} {kind}"):
                    cpu = _logits(path, torch.device("cpu"), form, kind)
                    gpu = _logits(path, bench.device, form, kind)
                    error = float((gpu - cpu).norm() / cpu.norm())
                    bench.check(f"model {form} {kind}", error, MODEL_LIMIT)


def _logits(path: Path, device: torch.device, form: Form, kind: Literal["bf16", "fp8"]) -> Tensor:
    on_cpu = device.type == "cpu"
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
        registry = Registry(spec, Weights(file), device, torch.float32 if on_cpu else torch.bfloat16)
        pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus())
        linears = "quantised" if on_cpu else "gpu"
        register_modules(
            registry, experts=build_local_experts, pool=pool, linears=linears, mla=form, native=False
        )
        model, cache = build_model(spec, registry, device), LatentCache(spec, 4, device, kind)
        ids = torch.randint(0, spec.vocab_size, (PROMPT + STEPS,), generator=torch.Generator().manual_seed(3))
        request = Request("r", ids.tolist(), SamplingParams(), max_tokens=8, pages=[2, 0])
        chunks = [(0, 70), (70, PROMPT - 70), *((PROMPT + i, 1) for i in range(STEPS))]
        rows = []
        for start, length in chunks:
            batch = make_batch(StepPlan((Chunk(request, start, length),)), device)
            batch = replace(batch, sampled_rows=torch.arange(length, device=device))
            rows.append(model.forward(batch, cache).logits.cpu())
    return torch.cat(rows)
