"""A greedy answer and its log probabilities are the same to the bit however its request met the engine.

The whole engine, with int8 activations and every layer in one native call, as a CPU serves with
`attn.mla: absorbed`; alone and in one piece is the reference.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import trimaran_kernels
from trimaran.gguf import GGUFFile
from trimaran.spec import ModelSpec, read_spec
from trimaran.synth import write_random_model
from trimaran.wire import Generate, SamplingParams, TokenBatch, TokenLogprob
from trimaran_attn.engine import Engine
from trimaran_attn.experts_here import ExpertsHere
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.deepseek2 import Deepseek2, build_model
from trimaran_attn.model.mla import MlaForm
from trimaran_attn.model.modules import register_modules
from trimaran_attn.pages import PageAllocator
from trimaran_attn.registry import Registry
from trimaran_attn.runner import Runner
from trimaran_attn.scheduler import Limits, Scheduler
from trimaran_attn.weights import Weights

CPU = torch.device("cpu")
N_PAGES = 24
SHARED = 130
OUTPUT = 24


@dataclass
class Answer:
    """What a client hears."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: list[TokenLogprob] = field(default_factory=list)
    cached: int = 0


@dataclass(frozen=True)
class Network:
    """A model as a CPU serves it, without its cache."""

    spec: ModelSpec
    model: Deepseek2

    def engine(
        self, *, step: int, lone: int = 0, prefix_cache: bool = False, n_pages: int = N_PAGES
    ) -> Engine:
        limits = Limits(
            context_length=8 * PAGE_SIZE,
            max_running=6,
            max_waiting=32,
            max_step_tokens=step,
            page_size=PAGE_SIZE,
            lone_step_tokens=lone,
        )
        runner = Runner(self.model, LatentCache(self.spec, n_pages, CPU, "bf16"), CPU)
        scheduler = Scheduler(limits, PageAllocator(n_pages), prefix_cache=prefix_cache)
        return Engine(scheduler, runner, self.spec.vocab_size)

    def prompts(self) -> dict[str, list[int]]:
        """Of several lengths; two begin alike."""
        rng = np.random.default_rng(3)
        ids = rng.integers(0, self.spec.vocab_size, 1000).tolist()
        common = ids[:SHARED]
        return {
            "long": common + ids[200:270],
            "twin": common + ids[300:345],
            "short": ids[400:405],
            "page": ids[500 : 500 + PAGE_SIZE],
            "odd": ids[600:737],
        }


def load(path: Path, linears: str, mla: MlaForm) -> Network:
    file = GGUFFile.open(path)
    spec = read_spec(file)
    registry = Registry(spec, Weights(file), CPU, torch.float32)
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus(2))
    packs = linears == "packed"
    experts = ExpertsHere(pool, "auto", packs=packs, max_tokens=512)
    register_modules(
        registry, experts=experts.take, pool=pool, linears=linears, mla=mla, native=True, exact_maps=not packs
    )
    return Network(spec, build_model(spec, registry, CPU))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(
        tmp_path_factory.mktemp("model") / "m.gguf", "v3", mix="Q4_K_M", seed=8, tokenizer=False
    )


@pytest.fixture(scope="module", params=["packed", "quantised"])
def network(request: pytest.FixtureRequest, path: Path) -> Network:
    """Without matrix tiles, which take over from some number of tokens on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMARAN_ISA", "avx512_vnni")
        return load(path, request.param, "absorbed")


def ask(
    engine: Engine, name: str, prompt: list[int], *, scores: int | None = None, priority: int = 0
) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=OUTPUT, logprobs=3, prompt_logprobs=scores)
    message = Generate(request_id=name, prompt_ids=prompt, sampling=sampling, priority=priority)
    assert engine.submit(message) is None


def step(engine: Engine, answers: dict[str, Answer]) -> None:
    for event in engine.step():
        assert isinstance(event, TokenBatch)
        answer = answers.setdefault(event.request_id, Answer())
        answer.ids += event.ids
        answer.logprobs += event.logprobs or []
        answer.prompt += event.prompt_logprobs or []
        if event.usage is not None:
            answer.cached = event.usage.cached_tokens


def finish(engine: Engine) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    while engine.has_work:
        step(engine, answers)
    return answers


def alone(network: Network, scores: int | None = None) -> dict[str, Answer]:
    answers = {}
    for name, prompt in network.prompts().items():
        engine = network.engine(step=512)
        ask(engine, name, prompt, scores=scores)
        answers |= finish(engine)
    return answers


@pytest.fixture(scope="module")
def reference(network: Network) -> dict[str, Answer]:
    return alone(network)


def assert_same(got: dict[str, Answer], expected: dict[str, Answer]) -> None:
    for name, answer in got.items():
        of = name.split("#")[0]
        assert answer.ids == expected[of].ids, name
        assert answer.logprobs == expected[of].logprobs, name


@pytest.mark.parametrize(("budget", "lone"), [(7, 0), (33, 90), (64, 0), (512, 0)])
def test_beside_any_others_in_any_chunks(
    network: Network, reference: dict[str, Answer], budget: int, lone: int
) -> None:
    """Requests come at random times, with random priorities, from a fixed seed."""
    engine = network.engine(step=budget, lone=lone)
    rng = np.random.default_rng(budget)
    names = [f"{name}#{i}" for i in range(2) for name in network.prompts()]
    answers: dict[str, Answer] = {}
    for name in rng.permutation(names).tolist():
        ask(engine, name, network.prompts()[name.split("#")[0]], priority=int(rng.integers(-2, 3)))
        for _ in range(int(rng.integers(0, 4))):
            step(engine, answers)
    while engine.has_work:
        step(engine, answers)
    assert sorted(answers) == sorted(names)
    assert_same(answers, reference)


def test_from_the_prefix_cache(network: Network, reference: dict[str, Answer]) -> None:
    engine = network.engine(step=48, prefix_cache=True)
    for _ in range(2):
        for name, prompt in network.prompts().items():
            ask(engine, name, prompt)
        answers = finish(engine)
        assert_same(answers, reference)
    assert {name: answer.cached for name, answer in answers.items()} == {
        "long": 192,
        "twin": 128,
        "short": 0,
        "page": 0,
        "odd": 128,
    }


def test_a_second_turn_over_a_cached_answer(network: Network, reference: dict[str, Answer]) -> None:
    """Its history was computed token by token; uncached it is one chunk."""
    prompt = network.prompts()["odd"]
    turn = [*prompt, *reference["odd"].ids, *range(60)]
    fresh = network.engine(step=512)
    ask(fresh, "turn", turn)
    expected = finish(fresh)
    cached = network.engine(step=40, prefix_cache=True)
    for name, ids in (("odd", prompt), ("turn", turn)):
        ask(cached, name, ids)
        answers = finish(cached)
    assert answers["turn"].cached == 2 * PAGE_SIZE
    assert_same(answers, expected)


def test_preempted_and_computed_again(network: Network, reference: dict[str, Answer]) -> None:
    """All fit until the twins need another page each."""
    engine = network.engine(step=96, n_pages=8)
    names = ["twin#0", "twin#1", "page#2"]
    for priority, name in enumerate(names):
        ask(engine, name, network.prompts()[name.split("#")[0]], priority=priority)
    answers = finish(engine)
    assert engine.scheduler.counters.preemptions > 0
    assert set(answers) == set(names)
    assert_same(answers, reference)


def test_log_probabilities_of_prompts(network: Network) -> None:
    expected = alone(network, scores=2)
    engine = network.engine(step=45)
    for name, prompt in network.prompts().items():
        ask(engine, name, prompt, scores=2)
    answers = finish(engine)
    assert_same(answers, expected)
    for name, answer in answers.items():
        assert len(answer.prompt) == len(network.prompts()[name]) - 1
        assert answer.prompt == expected[name].prompt, name
