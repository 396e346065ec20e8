"""From a step's plan to logits: flattens the requests' tokens, and runs the model over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from trimaran.errors import GpuMemoryError, PeerError
from trimaran.telemetry import Log
from trimaran.wire import TokenLogprob

from trimaran_attn.device import explained_memory
from trimaran_attn.drawing import NOT_WANTED, Computed, Drawer, HostSide, draw_now
from trimaran_attn.graph.steps import StepGraphs
from trimaran_attn.hop_steps import HopSteps, PlainSteps
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.batch import Batch, Output, Segment
from trimaran_attn.model.scoring import Scored, Scores
from trimaran_attn.scheduler import Chunk, StepPlan

_log = Log(__name__)


class Model(Protocol):
    """What the runner needs of a model."""

    def forward(self, batch: Batch, cache: LatentCache) -> Output:
        """Logits of the batch's sampled rows, scores of its scored ones."""
        ...


@dataclass(frozen=True)
class StepOutput:
    """What a step found out.

    Attributes:
        logits: [S, vocab] float32 on the CPU, good until the next step: a row for each chunk that samples and
            is not in `tokens`, in order.
        prompt_logprobs: by request id, of the prompt tokens that follow each of its chunk's `scored` ones.
        tokens: by request id, those that were drawn as the plan says; None where logits are no numbers.
    """

    logits: Tensor
    prompt_logprobs: Mapping[str, list[TokenLogprob]] = field(default_factory=dict)
    tokens: Mapping[str, int | None] = field(default_factory=dict)


class Runner:
    """Computes steps.

    Args:
        model: on `device`.
        cache: its latents.
        device: where the batch's tensors go.
        hop: told of every step.
        graphs: replays the steps that fit it.
        drawer: draws tokens on the device where the plan says how; the same as of `graphs`.
    """

    def __init__(
        self,
        model: Model,
        cache: LatentCache,
        device: torch.device,
        hop: HopSteps | None = None,
        graphs: StepGraphs | None = None,
        *,
        drawer: Drawer | None = None,
    ) -> None:
        self._model = model
        self._cache = cache
        self._device = device
        self._hop = hop or PlainSteps()
        self._graphs = graphs
        self._drawer = drawer
        self._host = HostSide(device)

    def run(self, plan: StepPlan) -> StepOutput:
        """Compute a step."""
        with explained_memory("computing a step"), self._hop.step():
            if self._graphs is not None and self._graphs.fits(plan):
                return self._fetch(plan, self._graphs.run(plan), {})
            return self._run_eagerly(plan)

    def warm_up(self) -> None:
        """Record steps before the first request comes."""
        if self._graphs is None:
            return
        try:
            with explained_memory("recording decode steps"):
                self._graphs.warm_up()
        except (PeerError, GpuMemoryError) as error:
            _log.warning("decode steps are recorded when they come", reason=str(error))

    def _run_eagerly(self, plan: StepPlan) -> StepOutput:
        output = self._model.forward(make_batch(plan, self._device), self._cache)
        scoring = [chunk.request.request_id for chunk in plan.chunks if chunk.scored]
        scores = {name: _logprobs(scores) for name, scores in zip(scoring, output.scores, strict=True)}
        return self._fetch(plan, self._draw(plan, output.logits), scores)

    def _draw(self, plan: StepPlan, logits: Tensor) -> Computed:
        if self._drawer is None or not plan.draws:
            return Computed(logits)
        draws = [plan.draws.get(name, NOT_WANTED) for name in _sampling(plan)]
        return Computed(logits, draw_now(self._drawer, logits, draws))

    def _fetch(
        self, plan: StepPlan, computed: Computed, scores: Mapping[str, list[TokenLogprob]]
    ) -> StepOutput:
        """The tokens that were drawn, and the logits of the other rows."""
        names = _sampling(plan)
        drawn = {} if computed.tokens is None else plan.draws
        others = [row for row, name in enumerate(names) if name not in drawn]
        logits, tokens = self._host.fetch(computed, others)
        found = {name: token for name, token in zip(names, tokens, strict=False) if name in drawn}
        return StepOutput(logits, scores, {name: None if t < 0 else t for name, t in found.items()})


def make_batch(plan: StepPlan, device: torch.device) -> Batch:
    """Flatten the chunks of a plan, one after the other."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sampled_rows: list[int] = []
    segments = []
    scored = []
    for chunk in plan.chunks:
        stop = chunk.start + chunk.length
        rows = slice(len(token_ids), len(token_ids) + chunk.length)
        segments.append(Segment(rows, chunk.start, tuple(chunk.request.pages)))
        token_ids += chunk.request.tokens(chunk.start, stop)
        positions += range(chunk.start, stop)
        slots += _slots(chunk)
        if chunk.samples:
            sampled_rows.append(rows.stop - 1)
        if chunk.scored:
            scored.append(_scored(chunk, rows.start - chunk.start, device))
    return Batch(
        torch.tensor(token_ids, device=device),
        torch.tensor(positions, device=device),
        torch.tensor(slots, device=device),
        tuple(segments),
        torch.tensor(sampled_rows, dtype=torch.int64, device=device),
        tuple(scored),
    )


def _scored(chunk: Chunk, offset: int, device: torch.device) -> Scored:
    """What to score of a chunk whose position p is the batch's row `offset` + p."""
    positions, request = chunk.scored, chunk.request
    targets = list(request.tokens(positions.start + 1, positions.stop + 1))
    rows = slice(positions.start + offset, positions.stop + offset)
    return Scored(rows, torch.tensor(targets, device=device), request.sampling.prompt_logprobs or 0)


def _logprobs(scores: Scores) -> list[TokenLogprob]:
    columns = (scores.logprobs.tolist(), scores.top_ids.tolist(), scores.top_logprobs.tolist())
    return [
        TokenLogprob(logprob, tuple(zip(ids, tops, strict=True)))
        for logprob, ids, tops in zip(*columns, strict=True)
    ]


def _sampling(plan: StepPlan) -> list[str]:
    """Whose next token follows from the step, in the order of its logits."""
    return [chunk.request.request_id for chunk in plan.chunks if chunk.samples]


def _slots(chunk: Chunk) -> list[int]:
    """Where the latents of a chunk's tokens go: page × page size + offset."""
    pages = chunk.request.pages
    return [
        pages[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
        for position in range(chunk.start, chunk.start + chunk.length)
    ]
