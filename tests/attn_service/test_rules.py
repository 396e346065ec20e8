"""Rules files at work: what they choose is built, and the model still says what transformers says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import trimaran_kernels
from transformers import PreTrainedModel
from transformers_reference import greedy
from trimaran.config_loader import load_config
from trimaran.errors import ConfigError
from trimaran.gguf import GGUFFile
from trimaran.rules import IMPLEMENTATIONS, modules_of
from trimaran.spec import read_spec
from trimaran.synth import write_random_model
from trimaran.wire import Generate, SamplingParams, TokenBatch
from trimaran_attn.engine import Engine
from trimaran_attn.experts import build_local_experts
from trimaran_attn.loading import load_engine, open_model
from trimaran_attn.metrics import Meter
from trimaran_attn.model import modules as model_modules
from trimaran_attn.model.deepseek2 import build_model
from trimaran_attn.registry import Registry
from trimaran_attn.weights import Weights

RULES = r"""
- {match: {name: ^lm_head$, kind: head}, replace: {implementation: dense, dtype: float32}}
- {match: {name: 'layers\.1\.', kind: linear}, replace: {implementation: dense}}
- {match: {name: 'layers\.0\.', kind: attention}, replace: {implementation: absorbed}}
- {match: {kind: attention}, replace: {implementation: naive}}
- {match: {kind: linear}, replace: {implementation: quantised, device: cpu}}
"""


class Recorder(Registry):
    """Notes what is registered and built."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.registered: dict[str, list[str]] = {}
        self.built: dict[str, str] = {}

    def register(self, kind: Any, name: str, factory: Any, *, default: bool = False) -> None:
        self.registered.setdefault(kind.name, []).append(name)
        super().register(kind, name, factory, default=default)

    def build(self, path: str, kind: Any, shape: Any = ()) -> Any:
        self.built[path] = kind.name
        return super().build(path, kind, shape)


@contextmanager
def engine_of(path: Path, rules: Path, **options: object) -> Iterator[Engine]:
    overrides = {
        "model": str(path),
        "precision": "exact",
        "attn.device": "cpu",
        "attn.threads": 1,
        "attn.max_step_tokens": 24,
        "attn.rules": str(rules),
        **options,
    }
    opened = open_model(load_config(None, overrides, {}))
    with closing(opened.file):
        engine = load_engine(opened, build_local_experts, Meter())
        yield engine
        engine.close()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


@pytest.mark.parametrize("shape", ["v2-lite", "v3"])
def test_rules_speak_of_the_modules_that_are_built(tmp_path: Path, shape: str) -> None:
    with GGUFFile.open(write_random_model(tmp_path / "m.gguf", shape, tokenizer=False)) as file:
        spec = read_spec(file)
        registry = Recorder(spec, Weights(file), torch.device("cpu"), torch.float32)
        model_modules.register_modules(
            registry,
            experts=build_local_experts,
            pool=trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(1)),
            linears="quantised",
            mla="auto",
            native=True,
        )
        build_model(spec, registry, torch.device("cpu"))
    described = {module.path: module.kind for module in modules_of(spec)}
    parts = {kind for kind, names in IMPLEMENTATIONS.items() if not names}
    assert registry.built == {path: kind for path, kind in described.items() if kind not in parts}
    named = {kind: set(names) for kind, names in IMPLEMENTATIONS.items() if names}
    assert {kind: set(names) for kind, names in registry.registered.items()} == named


def test_a_model_by_rules_says_what_transformers_says(
    tmp_path: Path, rules: Path, build_reference: Callable[[Path], PreTrainedModel]
) -> None:
    path = write_random_model(tmp_path / "m.gguf", "v3", mix="Q8_0", seed=5, tokenizer=False)
    prompt = [(7 * i) % 200 for i in range(40)]
    with engine_of(path, rules) as engine:
        sampling = SamplingParams(temperature=0.0, max_tokens=24)
        assert engine.submit(Generate(request_id="r", prompt_ids=prompt, sampling=sampling)) is None
        ids: list[int] = []
        while engine.has_work:
            for event in engine.step():
                assert isinstance(event, TokenBatch)
                ids += event.ids
    assert ids == greedy(build_reference(path), prompt, 24)


def test_choices_reach_the_registry(tmp_path: Path, rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: dict[str, str] = {}
    original = model_modules.build_dense

    def note(site: Any) -> Any:
        built[site.path] = str(site.dtype)
        return original(site)

    monkeypatch.setattr(model_modules, "build_dense", note)
    path = write_random_model(tmp_path / "m.gguf", "v3", mix="Q8_0", tokenizer=False)
    with engine_of(path, rules):
        pass
    assert built["lm_head"] == "torch.float32"
    assert {name for name in built if name != "lm_head"} == {
        f"model.layers.1.{name}"
        for name in (
            "self_attn.q_a_proj",
            "self_attn.q_b_proj",
            "self_attn.kv_a_proj_with_mqa",
            "self_attn.o_proj",
            "mlp.shared_experts.gate_proj",
            "mlp.shared_experts.up_proj",
            "mlp.shared_experts.down_proj",
        )
    }


def test_a_gpu_that_is_not_here_is_refused_before_anything_is_read(tmp_path: Path, rules: Path) -> None:
    rules.write_text("- {match: {kind: norm}, replace: {device: 'cuda:63'}}\n")
    path = write_random_model(tmp_path / "m.gguf", "v3", tokenizer=False)
    with (
        pytest.raises(ConfigError, match=r"rules\.yaml: rule 1: it names cuda:63, but"),
        engine_of(path, rules, **{"attn.device": "auto"}),
    ):
        pass
