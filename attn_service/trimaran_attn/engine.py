"""The engine: requests in, tokens out, one step at a time. It needs no socket and no thread of its own."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
from torch import Tensor
from trimaran.errors import OverloadedError, RequestError
from trimaran.telemetry import Log
from trimaran.timeline import Tracer
from trimaran.wire import EngineStats, Generate, LarkGrammar, RequestFailed, TokenBatch, TokenLogprob

from trimaran_attn.draws import Draw
from trimaran_attn.gpu_experts.caretaker import Caretaker
from trimaran_attn.grammar.constraints import Constraints
from trimaran_attn.metrics import Meter, Tally, engine_stats
from trimaran_attn.request import Request, State
from trimaran_attn.runner import StepOutput
from trimaran_attn.sampler import Drawn, Sampler
from trimaran_attn.sampling_params import check_deadline, check_sampling, check_token_ids
from trimaran_attn.scheduler import Scheduler, StepPlan
from trimaran_attn.stopping import StepStop

Event = TokenBatch | RequestFailed
NOT_FINITE = "the model's output is not finite"
DRAW_FAILED = "no token could be drawn, see the attention service's log"
_log = Log(__name__)


class StepRunner(Protocol):
    """Computes a step."""

    def run(self, plan: StepPlan) -> StepOutput:
        """Logits for each chunk that samples, and the scores that are asked for."""
        ...

    def warm_up(self) -> None:
        """Do now what would delay the first steps."""
        ...


@dataclass(frozen=True, slots=True)
class NextToken:
    """A token, and whether it completes what the request's grammar asks for."""

    drawn: Drawn
    completes: bool


class Engine:
    """Serves several requests at once.

    Args:
        scheduler: which tokens a step computes.
        runner: computes them.
        vocab_size: ids below it are tokens.
        meter: takes the histograms' samples.
        clock: seconds, monotonic.
        constraints: for requests with grammars; without it they are refused.
        tracer: records the parts of each step when it is asked to.
        draws_ahead: the runner may draw tokens, so it is told how.
        on_close: called after the last step.
        stop: ends steps that nobody wants; the runner's model looks at it.

    Attributes:
        is_held: the last step had nothing to compute, as all requests wait for their grammars.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        vocab_size: int,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        constraints: Constraints | None = None,
        tracer: Tracer | None = None,
        caretaker: Caretaker | None = None,
        draws_ahead: bool = False,
        on_close: Callable[[], None] = lambda: None,
        stop: StepStop | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.stop = stop or StepStop()
        self.meter = meter or Meter()
        self._runner = runner
        self._vocab_size = vocab_size
        self._clock = clock
        self._constraints = constraints
        self._tracer = tracer or Tracer()
        self._caretaker = caretaker
        self._draws_ahead = draws_ahead
        self._on_close = on_close
        self.is_held = False
        self._samplers: dict[str, Sampler] = {}
        # What a step found out before it raised must not be lost.
        self._events: list[Event] = []

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_work

    def submit(self, message: Generate, received_at: float | None = None) -> RequestFailed | None:
        """Take a request; the answer says why it was refused, if it was.

        Args:
            message: the request.
            received_at: when it came, by the engine's clock; None is now. Its deadline counts from then.
        """
        try:
            request = self._make_request(message, self._clock() if received_at is None else received_at)
            sampler = self._make_sampler(message)
            self.scheduler.add(request)
        except RequestError as error:
            return RequestFailed(
                request_id=message.request_id, code=error.code, message=str(error), param=error.param
            )
        except OverloadedError as error:
            return RequestFailed(request_id=message.request_id, code="overloaded", message=str(error))
        self._samplers[request.request_id] = sampler
        if self._constraints is not None and message.grammar is not None:
            self._constraints.add(request.request_id, message.grammar)
        return None

    def abort(self, request_id: str) -> Event | None:
        """End a request; None if it is unknown or over."""
        self.stop.settle(request_id)
        request = self.scheduler.end(request_id, "abort")
        return None if request is None else self._last_words(request, self._clock())

    def fail_all(self, code: str, message: str) -> list[Event]:
        """End every request with an error, as when the experts are gone.

        Returns:
            What the clients should hear, with what a step that raised left unsaid.
        """
        for request in self.scheduler.requests():
            self._events.append(self.fail(request.request_id, code, message))
        return self._take_events()

    def fail(self, request_id: str, code: str, message: str, param: str | None = None) -> RequestFailed:
        """End a request with an error, wherever it is; the answer for its client."""
        request = self.scheduler.end(request_id, code)
        if request is not None:
            self._forget(request, self._clock())
        return RequestFailed(request_id=request_id, code=code, message=message, param=param)

    def step(self, before_run: Callable[[], None] = lambda: None) -> list[Event]:
        """Schedule, run, draw. Returns what the clients should hear.

        Args:
            before_run: called when there is nothing left but to compute, if there is anything at all.

        Raises:
            PeerError: the experts did not answer; the requests are still there. What was to be heard until
                then is returned by the next step or `fail_all`.
            StepStoppedError: `stop` ended the step, of which nothing is booked; the requests are still there.
        """
        if self.has_work:
            with self._tracer.step():
                self._step(before_run)
        return self._take_events()

    def _step(self, before_run: Callable[[], None]) -> None:
        for late in self.scheduler.expire(self._clock()):
            self._events.append(self._last_words(late, self._clock()))
        if self._constraints is not None:
            self._refuse(self._constraints.refused())
        with self._tracer.span("schedule"):
            held = () if self._constraints is None else self._constraints.compiling
            plan = self.scheduler.schedule(self._clock(), held)
        self.is_held = not plan.chunks
        if plan.chunks:
            if self._draws_ahead:
                plan = dataclasses.replace(plan, draws=self._draws(plan))
            before_run()
            stopping = self.stop.watching(plan, self._clock())
            with self._tracer.span("forward", tokens=plan.n_tokens), stopping:
                output = self._runner.run(plan)
            with self._tracer.span("sample", tokens=len(output.logits) + len(output.tokens)):
                self._tell_scores(output.prompt_logprobs)
                self._complete(plan, self._draw(plan, output))

    def _draws(self, plan: StepPlan) -> dict[str, Draw]:
        """How tokens are drawn that need neither a grammar nor more than their logits."""
        constrained = () if self._constraints is None else self._constraints
        names = [chunk.request.request_id for chunk in plan.chunks if chunk.samples]
        draws = {name: self._samplers[name].next_draw() for name in names if name not in constrained}
        return {name: draw for name, draw in draws.items() if draw is not None}

    def warm_up(self) -> None:
        """Make the first steps as quick as later ones, once the experts are there."""
        self._runner.warm_up()

    def stats(self) -> EngineStats:
        """Counters, gauges, and the histogram samples since the last call."""
        residents = Tally() if self._caretaker is None else self._caretaker.tally
        return engine_stats(self.scheduler, self.meter, residents)

    def tend(self) -> None:
        """Look after what is not part of a step; between steps, in little time."""
        if self._caretaker is not None:
            self._caretaker.tend(idle=not self.has_work)

    def close(self) -> None:
        """After the last step."""
        try:
            if self._caretaker is not None:
                self._caretaker.close()
        finally:
            self._on_close()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _make_request(self, message: Generate, now: float) -> Request:
        params = message.sampling
        check_sampling(params, self._vocab_size)
        check_token_ids(message.prompt_ids, self._vocab_size, "prompt_ids")
        check_token_ids(message.stop_ids, self._vocab_size, "stop_ids")
        check_deadline(message.deadline)
        if message.grammar is not None:
            self._check_grammar(message.grammar)
        context = self.scheduler.limits.context_length
        return Request(
            request_id=message.request_id,
            prompt_ids=message.prompt_ids,
            sampling=params,
            max_tokens=context if params.max_tokens is None else params.max_tokens,
            stop_ids=frozenset() if params.ignore_eos else frozenset(message.stop_ids),
            priority=message.priority,
            arrived_at=now,
            deadline_at=None if message.deadline is None else now + message.deadline,
        )

    def _check_grammar(self, grammar: LarkGrammar) -> None:
        if self._constraints is None:
            raise RequestError(
                "grammars need a model file with a byte-level tokeniser and an end token",
                code="invalid_request",
                param="grammar",
            )
        self._constraints.check(grammar)

    def _make_sampler(self, message: Generate) -> Sampler:
        """A grammar has ends of its own: they are stop ids to the sampler, which may have to bar them."""
        params, stop_ids = message.sampling, set(message.stop_ids)
        if self._constraints is not None and message.grammar is not None:
            stop_ids.update(end for end in self._constraints.end_ids if end < self._vocab_size)
            if params.ignore_eos:
                params = msgspec.structs.replace(params, min_tokens=self.scheduler.limits.context_length)
        return Sampler(params, message.prompt_ids, stop_ids)

    def _tell_scores(self, prompt_logprobs: Mapping[str, list[TokenLogprob]]) -> None:
        for key, scores in prompt_logprobs.items():
            if all(math.isfinite(score.logprob) for score in scores):
                self._events.append(TokenBatch(request_id=key, ids=[], prompt_logprobs=scores))
            else:
                self._events.append(self.fail(key, "internal", NOT_FINITE))

    def _draw(self, plan: StepPlan, output: StepOutput) -> dict[str, NextToken]:
        """Tokens by request id; none for a request that fails here."""
        rows = self._finite_rows(plan, output)
        masked: dict[str, Tensor] = {}
        if self._constraints is not None:
            masked, failed = self._constraints.constrain(rows)
            self._refuse(failed)
            rows = {key: row for key, row in rows.items() if key not in failed}
        drawn = {key: self._next_token(key, row, masked.get(key)) for key, row in rows.items()}
        for key, token in output.tokens.items():
            if token is None:
                self._events.append(self.fail(key, "internal", NOT_FINITE))
            elif key in self._samplers:
                drawn[key] = NextToken(self._samplers[key].accept(token), completes=False)
        return {key: token for key, token in drawn.items() if token is not None}

    def _finite_rows(self, plan: StepPlan, output: StepOutput) -> dict[str, Tensor]:
        """Logits by request id; a request whose logits are no numbers fails."""
        logits, tokens = output.logits, output.tokens
        sampled = [c.request for c in plan.chunks if c.samples and c.request.request_id not in tokens]
        # A sum of logits is finite if they all are; it takes a tenth of the time of asking each.
        sane = logits.sum(-1).isfinite().tolist()
        rows = {}
        for request, row, valid in zip(sampled, logits, sane, strict=True):
            if valid:
                rows[request.request_id] = row
            elif request.state is not State.FINISHED:
                self._events.append(self.fail(request.request_id, "internal", NOT_FINITE))
        return rows

    def _next_token(self, request_id: str, logits: Tensor, masked: Tensor | None) -> NextToken | None:
        """Draw, and follow the grammar; None: the request failed, which its batch-mates shall not notice."""
        try:
            drawn = self._samplers[request_id].draw(logits, masked)
            constraints = self._constraints
            return NextToken(drawn, constraints is not None and constraints.take(request_id, drawn.token))
        except Exception:
            _log.exception("no token could be drawn", request=request_id)
            self._events.append(self.fail(request_id, "internal", DRAW_FAILED))
            return None

    def _complete(self, plan: StepPlan, drawn: Mapping[str, NextToken]) -> None:
        now = self._clock()
        sampled = [chunk.request for chunk in plan.chunks if chunk.request.request_id in drawn]
        previous_at = [request.last_token_at for request in sampled]
        tokens = {key: following.drawn.token for key, following in drawn.items()}
        complete = {key for key, following in drawn.items() if following.completes}
        self.scheduler.complete(plan, tokens, now, complete)
        for request, previous in zip(sampled, previous_at, strict=True):
            self.meter.observe_token(request, previous, now)
            self._events.append(self._token_event(request, drawn[request.request_id].drawn, now))

    def _token_event(self, request: Request, drawn: Drawn, now: float) -> TokenBatch:
        ended = request.finish_reason is not None
        if ended:
            self._forget(request, now)
        return TokenBatch(
            request_id=request.request_id,
            ids=[drawn.token],
            logprobs=None if drawn.logprob is None else [drawn.logprob],
            finish_reason=request.finish_reason,
            usage=request.usage(now) if ended else None,
        )

    def _last_words(self, request: Request, now: float) -> TokenBatch:
        """The final batch of a request that ended between two tokens."""
        self._forget(request, now)
        return TokenBatch(
            request_id=request.request_id,
            ids=[],
            finish_reason=request.finish_reason,
            usage=request.usage(now),
        )

    def _refuse(self, errors: Mapping[str, RequestError]) -> None:
        """End requests that turned out to be bad."""
        for key, error in errors.items():
            self._events.append(self.fail(key, error.code, str(error), error.param))

    def _forget(self, request: Request, now: float) -> None:
        self._samplers.pop(request.request_id, None)  # there is none if `submit` was interrupted
        if self._constraints is not None:
            self._constraints.remove(request.request_id)
        self.meter.observe_end(request, now)
