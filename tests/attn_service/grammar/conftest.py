"""Models of random weights and of plain noise, whose output only a grammar can hold in shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trimaran.gguf import GGUFFile
from trimaran.synth import write_random_model
from trimaran.wire import Generate, LarkGrammar, RequestFailed, SamplingParams, TokenBatch
from trimaran_attn.engine import Engine
from trimaran_attn.grammar.compiler import GrammarCompiler
from trimaran_attn.grammar.constraints import Constraints
from trimaran_attn.grammar.vocabulary import TokenTable, read_token_table
from trimaran_attn.pages import PageAllocator
from trimaran_attn.runner import StepOutput
from trimaran_attn.scheduler import Limits, Scheduler, StepPlan


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grammar") / "tiny.gguf"
    write_random_model(path, "v3", seed=3)
    return path


@pytest.fixture(scope="session")
def table(model_path: Path) -> TokenTable:
    with GGUFFile.open(model_path) as file:
        table = read_token_table(file.metadata)
    assert table is not None
    return table


@pytest.fixture(scope="session")
def compiler(table: TokenTable) -> GrammarCompiler:
    return GrammarCompiler(table)


@pytest.fixture(scope="session")
def lab(model_path: Path, build_lab: Callable[..., Any]) -> Any:
    return build_lab(model_path)


@pytest.fixture
def engine(lab: Any, compiler: GrammarCompiler) -> Engine:
    return lab.engine(constraints=Constraints(compiler))


class NoiseRunner:
    """Logits that depend on nothing: faster than any model, and as wild as can be."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._random = torch.Generator().manual_seed(11)

    def run(self, plan: StepPlan) -> StepOutput:
        n_rows = sum(chunk.samples for chunk in plan.chunks)
        return StepOutput(3 * torch.randn(n_rows, self._vocab_size, generator=self._random))


class Asker:
    """Sends requests to the engine and collects what comes back."""

    def __init__(self, engine: Engine, table: TokenTable) -> None:
        self.engine = engine
        self.table = table
        self.ids: dict[str, list[int]] = {}
        self.reasons: dict[str, str | None] = {}
        self.failures: dict[str, RequestFailed] = {}
        self.batches: dict[str, list[TokenBatch]] = {}

    def submit(self, name: str, grammar: str | None, **fields: Any) -> None:
        prompt = fields.pop("prompt_ids", [0, *(7 + ord(char) % 200 for char in name)])
        stop_ids = fields.pop("stop_ids", (1,))
        sampling = SamplingParams(**{"max_tokens": 400, "seed": 5, **fields})
        message = Generate(
            request_id=name,
            prompt_ids=prompt,
            sampling=sampling,
            stop_ids=stop_ids,
            grammar=None if grammar is None else LarkGrammar(text=grammar),
        )
        failure = self.engine.submit(message)
        if failure is not None:
            self.failures[name] = failure

    def run(self) -> None:
        while self.engine.has_work:
            self.step()

    def step(self) -> None:
        for event in self.engine.step():
            if isinstance(event, RequestFailed):
                self.failures[event.request_id] = event
                continue
            self.batches.setdefault(event.request_id, []).append(event)
            self.ids.setdefault(event.request_id, []).extend(event.ids)
            if event.finish_reason is not None:
                self.reasons[event.request_id] = event.finish_reason

    def text(self, name: str) -> str:
        """Its output; special tokens have no text."""
        special = {*self.table.special_token_ids}
        parts = [self.table.tokens[i] for i in self.ids[name] if i not in special]
        return b"".join(parts).decode()

    def value(self, name: str) -> Any:
        return json.loads(self.text(name))


@pytest.fixture
def noise(compiler: GrammarCompiler, table: TokenTable) -> Asker:
    """An asker whose engine draws from noise."""
    limits = Limits(context_length=4096, max_running=8, max_waiting=8, max_step_tokens=512, page_size=64)
    vocab_size = len(table.tokens)
    engine = Engine(
        Scheduler(limits, PageAllocator(512)),
        NoiseRunner(vocab_size),
        vocab_size,
        constraints=Constraints(compiler),
    )
    return Asker(engine, table)


@pytest.fixture
def asker(engine: Engine, table: TokenTable) -> Asker:
    return Asker(engine, table)
