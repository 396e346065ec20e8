"""A small model in plain torch, whose decode steps could be recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from replaying import AttachedSteps, CallingRecorder, build_dense_experts
from trimaran.gguf import GGUFFile
from trimaran.kv_format import KvFormat
from trimaran.spec import ModelSpec, read_spec
from trimaran.synth import write_random_model
from trimaran.timeline import Tracer
from trimaran_attn.drawing import Drawer
from trimaran_attn.graph.inputs import InputShape
from trimaran_attn.graph.steps import StepGraphs
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.deepseek2 import Deepseek2, build_model
from trimaran_attn.model.modules import register_modules
from trimaran_attn.placement import Placement
from trimaran_attn.registry import Registry
from trimaran_attn.weights import Weights
from trimaran_kernels import ThreadPool, usable_cpus

CPU = torch.device("cpu")
N_PAGES, MAX_RUNNING, CONTEXT = 20, 6, 5 * PAGE_SIZE


@dataclass
class Bench:
    """A model, a cache for it with a page that no request has, and recorded steps."""

    spec: ModelSpec
    model: Deepseek2
    recorder: CallingRecorder
    tracer: Tracer
    placement: Placement

    def cache(self, kind: KvFormat = "f32") -> LatentCache:
        cache = LatentCache(self.spec, N_PAGES + 1, self.placement, kind)
        for layer in range(self.spec.n_layers):
            cache.layer_bytes(layer).fill_(0xFF)  # NaN, as memory may hold that nobody wrote to
        return cache

    def graphs(self, cache: LatentCache, drawer: Drawer | None = None) -> StepGraphs:
        widest = InputShape(MAX_RUNNING, CONTEXT, self.spec.hidden_size, torch.float32, N_PAGES)
        return StepGraphs(
            self.model,
            cache,
            AttachedSteps(),
            self.recorder,
            widest=widest,
            devices=tuple(stage.device for stage in self.placement.stages),
            tracer=self.tracer,
            drawer=drawer,
        )


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    return GGUFFile.open(write_random_model(path, "v3", mix="Q8_0", tokenizer=False))


@pytest.fixture
def make_bench(file: GGUFFile) -> Callable[..., Bench]:
    def make(
        linears: str = "dense", experts: Any = build_dense_experts, where: Placement | None = None
    ) -> Bench:
        spec = read_spec(file)
        placement = where or Placement.on(CPU, spec.n_layers)
        registry = Registry(spec, Weights(file), placement, torch.float32)
        register_modules(
            registry,
            experts=experts,
            pool=ThreadPool(usable_cpus(1)),
            linears=linears,
            mla="absorbed",
            native=False,
        )
        return Bench(spec, build_model(spec, registry, placement), CallingRecorder(), Tracer(), placement)

    return make
