"""Our model of a file, and transformers' one, side by side in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import interpreted  # noqa: F401 transformers imports Triton
import pytest
import torch
import trimaran_kernels
from transformers import PreTrainedModel
from transformers_reference import reference_model
from trimaran.gguf import GGUFFile
from trimaran.kv_format import KvFormat
from trimaran.spec import ModelSpec, read_spec
from trimaran_attn.engine import Engine
from trimaran_attn.experts import build_local_experts
from trimaran_attn.grammar.constraints import Constraints
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.deepseek2 import Deepseek2, ForwardOptions, build_model
from trimaran_attn.model.mla import MlaForm
from trimaran_attn.model.modules import register_modules
from trimaran_attn.pages import PageAllocator
from trimaran_attn.placement import Placement
from trimaran_attn.registry import Registry
from trimaran_attn.runner import Runner
from trimaran_attn.scheduler import Limits, Scheduler
from trimaran_attn.weights import Weights

CPU = torch.device("cpu")
N_PAGES = 24


@dataclass
class Lab:
    """Our model of a file, with its experts in this process."""

    spec: ModelSpec
    model: Deepseek2
    cache: LatentCache
    defer_experts: int = 0
    device: torch.device = CPU

    def engine(self, constraints: Constraints | None = None, **changes: int) -> Engine:
        values = {
            "context_length": N_PAGES * PAGE_SIZE,
            "max_running": 8,
            "max_waiting": 64,
            "max_step_tokens": 64,
            "page_size": PAGE_SIZE,
        }
        scheduler = Scheduler(Limits(**{**values, **changes}), PageAllocator(self.cache.n_pages))
        runner = Runner(self.model, self.cache, self.device)
        return Engine(scheduler, runner, self.spec.vocab_size, constraints=constraints)


BuildLab = Callable[..., Lab]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices only get slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def build_lab() -> BuildLab:
    return lab_of


@pytest.fixture(scope="session")
def build_reference() -> Callable[[Path], PreTrainedModel]:
    return reference_model


def lab_of(
    path: Path,
    *,
    linears: str = "quantised",
    mla: MlaForm = "auto",
    kv: KvFormat = "f32",
    dtype: torch.dtype = torch.float32,
    native: bool = True,
    exact_maps: bool = True,
    defer_experts: int = 0,
    where: torch.device | Placement = CPU,
    options: ForwardOptions | None = None,
) -> Lab:
    file = GGUFFile.open(path)
    spec = read_spec(file)
    registry = Registry(spec, Weights(file), where, dtype)
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1))
    register_modules(
        registry,
        experts=build_local_experts,
        pool=pool,
        linears=linears,
        mla=mla,
        native=native,
        exact_maps=exact_maps,
        defer_experts=defer_experts,
    )
    model = build_model(spec, registry, where, options=options)
    cache = LatentCache(spec, N_PAGES, where, kv)
    return Lab(spec, model, cache, defer_experts, Placement.on(where, spec.n_layers).first)
