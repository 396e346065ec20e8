"""The one way to generate, which every dialect of the API goes through."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace

import msgspec
from trimaran.errors import PeerError, RequestError
from trimaran.wire import Generate, SamplingParams, TokenBatch, TokenLogprob

from trimaran_gateway.chat.grammar import Constraint
from trimaran_gateway.chat.prompt import Prompt
from trimaran_gateway.engine.client import InternalEngineError
from trimaran_gateway.engine.interface import Answer, Engine
from trimaran_gateway.errors import DeadlineError
from trimaran_gateway.limits import spend_tokens
from trimaran_gateway.metrics import GatewayMetrics, RequestTimer
from trimaran_gateway.model import ServedModel
from trimaran_gateway.output.events import Event, Finished, FinishReason, Progress, TokenEntry, TokenUsage
from trimaran_gateway.output.parser import OutputFormat, OutputParser

_LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class GenerationRequest:
    """One answer wanted.

    Attributes:
        prompt: what to continue.
        sampling: `max_tokens` may be None: to the end of the context; or 0: the prompt is read, that is all.
        output: how to read the answer.
        priority: lower runs earlier.
    """

    prompt: Prompt
    sampling: SamplingParams
    output: OutputFormat
    priority: int = 0


class Generator:
    """Turns requests into events.

    Args:
        engine: the attention service.
        model: the model that it serves.
        metrics: where latencies are counted.
        timeout_s: longest time that one request may take.
    """

    def __init__(self, engine: Engine, model: ServedModel, metrics: GatewayMetrics, timeout_s: float) -> None:
        self._engine = engine
        self._model = model
        self._metrics = metrics
        self._timeout_s = timeout_s

    @property
    def context_length(self) -> int:
        """Longest prompt + answer that the engine takes now."""
        status = self._engine.status
        return (status.context_length if status else 0) or self._model.facts.context_length

    def fan_out(self, request: GenerationRequest, n: int) -> list[GenerationRequest]:
        """`n` requests for as many answers to one prompt; a seed gives each its own."""
        seed = request.sampling.seed
        if n == 1:
            return [request]
        return [
            replace(
                request,
                sampling=msgspec.structs.replace(
                    request.sampling, seed=None if seed is None else (seed + index) % (1 << 63)
                ),
            )
            for index in range(n)
        ]

    async def run(self, request: GenerationRequest) -> AsyncGenerator[Event]:
        """The events of one answer; the last is `Finished`. Closing the iterator early aborts the request.

        Raises:
            RequestError: the prompt does not fit the context, or the engine refuses the request.
            PeerError, OverloadedError, InternalEngineError: the engine is away, full or broken.
            DeadlineError: it took too long.
        """
        parser = OutputParser(self._model.tokenizer.vocabulary, request.output)
        timer = self._metrics.start_request(len(request.prompt.ids))
        try:
            async with self._engine.generate(self._message(request)) as stream:
                spend_tokens(len(request.prompt.ids))
                prompt = _PromptReading(request)
                async for received in self._batches(stream, request.prompt.constraint):
                    prompt_entries = prompt.take(received)
                    batch = _without_tokens(received) if request.sampling.max_tokens == 0 else received
                    timer.tokens(len(batch.ids))
                    spend_tokens(len(batch.ids))
                    parsed = parser.feed(batch.ids, _entries(batch.ids, batch.logprobs))
                    usage = _usage(request, parser, timer, batch)
                    yield Progress(usage, tuple(batch.ids), prompt_entries)
                    for event in parsed:
                        yield event
                    if batch.finish_reason is not None or parser.done:
                        for event in parser.finish():
                            yield event
                        finished = _finished(parser, batch, usage)
                        timer.finished(finished.reason, usage)
                        yield finished
                        return
        finally:
            timer.close()

    async def run_all(self, requests: Sequence[GenerationRequest]) -> AsyncGenerator[tuple[int, Event]]:
        """The events of several answers, each with the answer's index, as they come."""
        if len(requests) == 1:
            async with contextlib.aclosing(self.run(requests[0])) as events:
                async for event in events:
                    yield 0, event
            return
        async with contextlib.aclosing(_merge([self.run(request) for request in requests])) as merged:
            async for item in merged:
                yield item

    def _message(self, request: GenerationRequest) -> Generate:
        room = self.context_length - len(request.prompt.ids)
        if not request.prompt.ids:
            raise RequestError("the prompt is empty", code="invalid_value", param="prompt")
        if room < 1:
            param = "messages" if request.output.chat else "prompt"
            raise prompt_too_long(self.context_length, str(len(request.prompt.ids)), param)
        wanted = request.sampling.max_tokens
        sampling = msgspec.structs.replace(
            request.sampling, max_tokens=room if wanted is None else max(1, min(wanted, room))
        )
        return Generate(
            request_id=secrets.token_hex(12),
            prompt_ids=request.prompt.ids,
            sampling=sampling,
            stop_ids=request.output.stop_ids,
            grammar=None if request.prompt.constraint is None else request.prompt.constraint.grammar,
            priority=request.priority,
            deadline=self._timeout_s,
        )

    async def _batches(self, stream: Answer, constraint: Constraint | None) -> AsyncIterator[TokenBatch]:
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        while not stream.is_over:
            try:
                async with asyncio.timeout_at(deadline):
                    batch = await anext(stream)
            except RequestError as error:
                raise _blamed(error, constraint) from None
            except TimeoutError:
                raise DeadlineError(f"the request took longer than {self._timeout_s:g} s") from None
            if batch.finish_reason == "deadline":
                raise DeadlineError(f"the request took longer than {self._timeout_s:g} s")
            if batch.finish_reason == "abort":
                raise PeerError("the engine gave this request up")
            yield batch


def prompt_too_long(context_length: int, tokens: str, param: str) -> RequestError:
    """In OpenAI's words, which clients look for."""
    return RequestError(
        f"This model's maximum context length is {context_length} tokens. However, your prompt has {tokens} "
        "tokens. Please reduce the length of the prompt.",
        code="context_length_exceeded",
        param=param,
    )


def _blamed(error: RequestError, constraint: Constraint | None) -> RequestError:
    """The engine knows of a grammar only; the client wants to know which field is at fault."""
    if error.param != "grammar" or constraint is None:
        return error
    message = str(error).replace("grammar", constraint.param, 1)
    return RequestError(message, code="invalid_schema", param=constraint.param)


class _PromptReading:
    """Pairs the log probabilities of a prompt's tokens, as they come, with the tokens."""

    def __init__(self, request: GenerationRequest) -> None:
        self._ids = request.prompt.ids
        self._is_wanted = request.sampling.prompt_logprobs is not None
        self._next = 1  # the first token follows nothing

    def take(self, batch: TokenBatch) -> tuple[TokenEntry, ...]:
        """The batch's part of them.

        Raises:
            InternalEngineError: some are missing, although the answer begins.
        """
        values = batch.prompt_logprobs or []
        ids = self._ids[self._next : self._next + len(values)]
        self._next += len(values)
        if self._is_wanted and batch.ids and self._next < len(self._ids):
            raise InternalEngineError("the engine left out log probabilities of the prompt")
        return tuple(_entries(ids, values) or ())


def _without_tokens(batch: TokenBatch) -> TokenBatch:
    """A batch for a client that wanted its prompt read only: the engine draws one token at least."""
    reason = "length" if batch.ids or batch.finish_reason is not None else None
    return msgspec.structs.replace(batch, ids=[], logprobs=None, finish_reason=reason)


def _entries(ids: Sequence[int], logprobs: Sequence[TokenLogprob] | None) -> list[TokenEntry] | None:
    if logprobs is None:
        return None
    return [
        TokenEntry(token, _finite(value.logprob), tuple((other, _finite(low)) for other, low in value.top))
        for token, value in zip(ids, logprobs, strict=True)
    ]


def _finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, _LEAST_LOGPROB)


def _usage(
    request: GenerationRequest, parser: OutputParser, timer: RequestTimer, batch: TokenBatch
) -> TokenUsage:
    usage = TokenUsage(
        prompt_tokens=len(request.prompt.ids),
        completion_tokens=timer.generated,
        reasoning_tokens=min(parser.reasoning_tokens, timer.generated),
        prefill_s=timer.prefill_s,
        decode_s=timer.decode_s,
    )
    if batch.usage is None:
        return usage
    return replace(
        usage,
        cached_tokens=batch.usage.cached_tokens,
        queue_s=batch.usage.queue_s,
        prefill_s=batch.usage.prefill_s,
        decode_s=batch.usage.decode_s,
    )


def _finished(parser: OutputParser, batch: TokenBatch, usage: TokenUsage) -> Finished:
    reason: FinishReason = "stop"
    if parser.stop_sequence is None and parser.calls:
        reason = "tool_calls"
    if not parser.done and batch.finish_reason == "length":
        reason = "length"
    return Finished(reason, usage, parser.stop_sequence)


async def _merge(sources: Sequence[AsyncGenerator[Event]]) -> AsyncGenerator[tuple[int, Event]]:
    queue: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(maxsize=8 * len(sources))

    async def pump(index: int, source: AsyncGenerator[Event]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for event in source:
                    await queue.put((index, event))
            await queue.put((index, None))
        except Exception as error:
            await queue.put((index, error))

    tasks = [asyncio.create_task(pump(index, source)) for index, source in enumerate(sources)]
    try:
        left = len(tasks)
        while left:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
