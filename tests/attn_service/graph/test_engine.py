"""The engine with replayed decode steps: the same tokens as without, whoever comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import interpreted
import pytest
import torch
from torch import Tensor
from trimaran.errors import PeerError
from trimaran.wire import Generate, RequestFailed, SamplingParams, TokenBatch
from trimaran_attn.drawing import Drawer
from trimaran_attn.engine import NOT_FINITE as NOT_FINITE_MESSAGE
from trimaran_attn.engine import Engine
from trimaran_attn.graph.steps import StepGraphs
from trimaran_attn.kv_cache import PAGE_SIZE
from trimaran_attn.pages import PageAllocator
from trimaran_attn.runner import Runner
from trimaran_attn.scheduler import Limits, Scheduler
from trimaran_kernels.gpu.sampling_inputs import NOT_FINITE, DrawInputs

CPU = torch.device("cpu")
N_PAGES, CONTEXT = 20, 5 * PAGE_SIZE


@dataclass
class Run:
    """An engine that counts its steps, and what it said."""

    engine: Engine
    tokens: dict[str, list[int]]
    reasons: dict[str, str | None]

    def step(self) -> None:
        for event in self.engine.step():
            self.hear(event)

    def hear(self, event: TokenBatch | RequestFailed | None) -> None:
        if isinstance(event, TokenBatch):
            self.tokens.setdefault(event.request_id, []).extend(event.ids)
            self.reasons[event.request_id] = event.finish_reason


def make_run(bench, *, replayed: bool, pages: int, drawer: Drawer | None = None) -> tuple[Run, StepGraphs]:
    cache = bench.cache()
    graphs = bench.graphs(cache, drawer)
    limits = Limits(
        context_length=CONTEXT, max_running=6, max_waiting=64, max_step_tokens=70, page_size=PAGE_SIZE
    )
    scheduler = Scheduler(limits, PageAllocator(pages))
    runner = Runner(bench.model, cache, CPU, graphs=graphs if replayed else None, drawer=drawer)
    engine = Engine(scheduler, runner, bench.spec.vocab_size, draws_ahead=drawer is not None)
    return Run(engine, {}, {}), graphs


def generate(name: str, n_prompt: int, n_tokens: int, **sampling: float) -> Generate:
    ids = torch.randint(0, 280, (n_prompt,), generator=torch.Generator().manual_seed(n_prompt)).tolist()
    params = SamplingParams(max_tokens=n_tokens, **{"temperature": 0.0, "seed": 7, **sampling})
    return Generate(request_id=name, prompt_ids=ids, sampling=params)


Script = Callable[[Run, int], None]


def arrivals(run: Run, step: int) -> None:
    """Requests of all kinds of samplers come while others run."""
    joining = {
        0: [generate("greedy", 5, 40), generate("long", 130, 30)],
        4: [generate("warm", 3, 30, temperature=0.8)],
        9: [generate("nucleus", 60, 12, temperature=1.1, top_p=0.7), generate("short", 63, 3)],
        15: [
            generate("top", 20, 20, temperature=0.9, top_k=5),
            generate("penalised", 9, 18, frequency_penalty=0.5),
        ],
        22: [generate("scored", 30, 6, prompt_logprobs=1), generate("told", 12, 9, logprobs=2)],
    }
    for message in joining.get(step, []):
        run.hear(run.engine.submit(message))


def leaving(run: Run, step: int) -> None:
    """The same, but some are aborted, in the middle of the batch."""
    arrivals(run, step)
    for name, when in (("long", 12), ("greedy", 20), ("warm", 20)):
        if step == when:
            run.hear(run.engine.abort(name))


@pytest.mark.parametrize(("script", "pages"), [(arrivals, N_PAGES), (leaving, N_PAGES), (arrivals, 6)])
def test_the_tokens_are_the_same(make_bench, script: Script, pages: int) -> None:
    """With six pages for all, requests give theirs up and are computed again."""
    bench = make_bench()
    runs = []
    for replayed in (False, True):
        run, _ = make_run(bench, replayed=replayed, pages=pages)
        for step in range(400):
            script(run, step)
            if step > 22 and not run.engine.has_work:
                break
            run.step()
        runs.append(run)
    plain, replayed_run = runs
    assert replayed_run.tokens == plain.tokens
    assert replayed_run.reasons == plain.reasons
    assert len(plain.tokens) == 9
    assert bench.recorder.replayed > 20
    if pages < N_PAGES:
        assert plain.engine.scheduler.counters.preemptions > 0


@pytest.mark.skipif(interpreted.ON_GPU, reason="the model is on the CPU")
def test_tokens_drawn_in_the_step_are_the_same(make_bench) -> None:
    """Beside requests whose tokens the host draws, in replayed steps and in those that hold prompts."""
    from trimaran_kernels.gpu.sampling import draw

    def counted(logits: Tensor, wanted: DrawInputs, out: Tensor) -> Tensor:
        rows.append(len(logits))
        return draw(logits, wanted, out)

    bench, rows, runs = make_bench(), [], []
    for drawer in (None, counted):
        run, _ = make_run(bench, replayed=True, pages=N_PAGES, drawer=drawer)
        for message in (
            generate("greedy", 5, 7),
            generate("nucleus", 9, 6, temperature=1.1, top_p=0.7),
            generate("penalised", 8, 6, frequency_penalty=0.5),
            generate("told", 4, 5, logprobs=2),
        ):
            run.hear(run.engine.submit(message))
        for step in range(12):
            if step == 3:
                run.hear(run.engine.submit(generate("later", 70, 3, top_k=5)))
            run.step()
        assert not run.engine.has_work
        runs.append(run)
    assert runs[0].tokens == runs[1].tokens
    assert runs[0].reasons == runs[1].reasons
    assert [len(ids) for ids in runs[1].tokens.values()] == [7, 6, 6, 5, 3]
    assert len(rows) >= 7


def test_no_token_is_drawn_from_what_is_not_finite(make_bench) -> None:
    """The request fails, others go on."""

    def broken(logits: Tensor, wanted: DrawInputs, out: Tensor) -> Tensor:
        return out.copy_(torch.where(wanted.temperatures == 0.5, NOT_FINITE, logits.argmax(-1)))

    bench = make_bench()
    run, _ = make_run(bench, replayed=True, pages=N_PAGES, drawer=broken)
    run.engine.submit(generate("bad", 5, 4, temperature=0.5))
    run.engine.submit(generate("good", 5, 4))
    failures = []
    while run.engine.has_work:
        for event in run.engine.step():
            run.hear(event)
            failures += [event] if isinstance(event, RequestFailed) else []
    assert [(failure.request_id, failure.message) for failure in failures] == [("bad", NOT_FINITE_MESSAGE)]
    assert len(run.tokens["good"]) == 4


def test_a_step_that_fails_leaves_the_next_ones_whole(make_bench, monkeypatch) -> None:
    """As when the experts are gone in the middle: the requests fail, later ones get their tokens."""
    bench = make_bench()
    results = []
    for fails in (False, True):
        run, graphs = make_run(bench, replayed=True, pages=N_PAGES)
        if fails:
            run.engine.submit(generate("lost", 11, 30))
            for _ in range(5):
                run.step()
            with monkeypatch.context() as patch:
                patch.setattr(graphs, "run", lambda _: (_ for _ in ()).throw(PeerError("gone")))
                with pytest.raises(PeerError):
                    run.step()
            assert run.engine.fail_all("unavailable", "gone")
        run.engine.submit(generate("next", 17, 12))
        while run.engine.has_work:
            run.step()
        results.append(run.tokens["next"])
    assert results[0] == results[1]
    assert len(results[0]) == 12
