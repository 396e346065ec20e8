"""The Python API: a GGUF file as an object that generates, with the engine that serves (docs/python.md).

The names are KTransformers', so that its users find them; `trimaran` itself re-exports them.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from os import PathLike, fspath
from threading import Lock
from types import TracebackType
from typing import Any, Literal

import msgspec
import torch
from trimaran.config import Config
from trimaran.config_loader import load_config
from trimaran.errors import ConfigError, OverloadedError, PeerError, RequestError, TrimaranError
from trimaran.plan.sizes import largest_step
from trimaran.run_dir import default_run_dir, open_run_dir
from trimaran.spec import ModelSpec
from trimaran.wire import Generate, RequestFailed, SamplingParams, TokenBatch

from trimaran_attn.api_inputs import (
    StopTexts,
    Streamer,
    TextTokenizer,
    check_same_model,
    end_ids,
    sampling_params,
    stops,
    token_ids,
)
from trimaran_attn.device import start_threads
from trimaran_attn.engine import Engine
from trimaran_attn.experts_choice import connect
from trimaran_attn.experts_client import ExpertsClient
from trimaran_attn.experts_here import ExpertsHere
from trimaran_attn.interrupts import uninterrupted
from trimaran_attn.loading import OpenModel, load_engine, open_model
from trimaran_attn.main import open_link
from trimaran_attn.metrics import Meter

ExpertsPlace = Literal["here", "service"]
_END = "tokenizer.ggml.eos_token_id"


class LoadedModel:
    """A model that generates, for this process alone. Several threads may use it; steps are shared.

    Attributes:
        spec: its dimensions.
        config: as it was loaded, with what rules changed.
        notices: what of the rules file has no effect.
        end_id: token that ends an answer, as the file says.
    """

    def __init__(
        self, opened: OpenModel, engine: Engine, link: ExpertsClient | None, stack: ExitStack
    ) -> None:
        self.spec: ModelSpec = opened.spec
        self.config: Config = opened.config
        self.notices: tuple[str, ...] = opened.chosen.notices
        end = opened.file.metadata.get(_END)
        self.end_id: int | None = end if isinstance(end, int) else None
        self._engine: Engine | None = engine
        self._link = link
        self._stack = stack
        self._lock = Lock()
        self._events: dict[str, deque[TokenBatch | RequestFailed]] = {}
        # An iterator may be dropped by the garbage collector, within a step: it cannot wait for the lock.
        self._dropped: deque[str] = deque()

    @property
    def context_length(self) -> int:
        """Longest prompt + answer, in tokens."""
        return self._open().scheduler.limits.context_length

    def stream(
        self, prompt_ids: Sequence[int], sampling: SamplingParams, stop_ids: Sequence[int] = ()
    ) -> Generator[int]:
        """Tokens as they are drawn; the last may be one of `stop_ids`. Closing the iterator ends the request.

        Raises:
            RequestError: the prompt or the sampling cannot be served.
            PeerError: the expert service went away.
        """
        name = secrets.token_hex(8)
        message = Generate(
            request_id=name, prompt_ids=list(prompt_ids), sampling=sampling, stop_ids=tuple(stop_ids)
        )
        try:
            with self._lock, uninterrupted():
                self._forget_dropped()
                refused = self._open().submit(message)
                if refused is None:
                    self._events[name] = deque()
            if refused is not None:
                raise _error(refused)
            yield from self._tokens(name)
        finally:
            self._dropped.append(name)
            if self._lock.acquire(blocking=False):
                try:
                    self._forget_dropped()
                finally:
                    self._lock.release()

    def close(self) -> None:
        """Free weights, cache, threads and files. May be called twice; running iterators then fail."""
        with self._lock:
            engine, self._engine = self._engine, None
            if engine is not None:
                engine.close()
            self._events.clear()
            self._stack.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _forget_dropped(self) -> None:
        """End the requests whose iterators are gone; under the lock."""
        while self._dropped:
            name = self._dropped.popleft()
            self._events.pop(name, None)
            if self._engine is not None:
                self._engine.abort(name)

    def _open(self) -> Engine:
        if self._engine is None:
            raise TrimaranError("the model is closed", remedy="load it again")
        return self._engine

    def _tokens(self, name: str) -> Iterator[int]:
        while True:
            event = self._next(name)
            if isinstance(event, RequestFailed):
                raise _error(event)
            yield from event.ids
            if event.finish_reason is not None:
                return

    def _next(self, name: str) -> TokenBatch | RequestFailed:
        """A request's next event; steps until there is one. Whoever waits steps for all."""
        while True:
            with self._lock, uninterrupted():
                self._forget_dropped()
                engine = self._open()
                if self._events[name]:
                    return self._events[name].popleft()
                if not engine.has_work:
                    raise TrimaranError("the request is over, but its end was not told")
                self._step(engine)

    def _step(self, engine: Engine) -> None:
        """A step for all. One that breaks off, by a second Ctrl-C too, ends every request."""
        try:
            events = engine.step()
        except BaseException as error:
            if self._link is not None:
                self._link.settle()
            code = "unavailable" if isinstance(error, PeerError) else "internal"
            self._hand_out(engine.fail_all(code, str(error) or f"a step broke off: {type(error).__name__}"))
            raise
        self._hand_out(events)
        engine.tend()

    def _hand_out(self, events: Sequence[TokenBatch | RequestFailed]) -> None:
        for event in events:
            if event.request_id in self._events:
                self._events[event.request_id].append(event)


def optimize_and_load_gguf(
    model: object = None,
    optimize_config_path: str | PathLike[str] | None = None,
    gguf_path: str | PathLike[str] | None = None,
    config: object = None,
    *,
    experts: ExpertsPlace = "here",
) -> LoadedModel:
    """Load a GGUF file.

    Args:
        model: transformers' (meta) model or configuration, or a `ModelSpec`: it is compared with the file,
            which alone gives weights and dimensions. None compares nothing.
        optimize_config_path: rules file (docs/rules.md), or None.
        gguf_path: the file, the first of split ones, a folder, or `demo`; None: what `config` says.
        config: a `Config`, a mapping of options by path such as {"attn.device": "cpu"}, or transformers'
            configuration, which is compared with the file like `model`.
        experts: where routed experts are computed: `here`, in this process, or by the expert `service` that
            runs in `run_dir` or at `experts.endpoints`.

    Raises:
        ConfigError: an option, the rules, or a model that is not the file's.
        ModelFileError: the file is missing, damaged or of another architecture.
        PlanError: it does not fit.
        PeerError: there is no expert service.
    """
    if experts not in ("here", "service"):
        raise ConfigError(f"experts is {experts!r}", remedy="'here' or 'service'")
    options, compared = _options(config)
    if gguf_path is not None:
        options = msgspec.structs.replace(options, model=fspath(gguf_path))
    if optimize_config_path is not None:
        attn = msgspec.structs.replace(options.attn, rules=fspath(optimize_config_path))
        options = msgspec.structs.replace(options, attn=attn)
    with ExitStack() as stack:
        opened = open_model(options)
        stack.enter_context(closing(opened.file))
        for other in (model, compared):
            check_same_model(other, opened.spec, str(opened.file.path))
        engine, link = _load_here(opened) if experts == "here" else _load_linked(opened, stack)
        engine.warm_up()
        return LoadedModel(opened, engine, link, stack.pop_all())


def _options(config: object) -> tuple[Config, object]:
    """Our configuration, and what is to be compared with the file."""
    if config is None:
        return load_config(), None
    if isinstance(config, Config):
        return config, None
    if isinstance(config, Mapping):
        return load_config(None, config), None
    return load_config(), config


def _load_here(opened: OpenModel) -> tuple[Engine, None]:
    options = opened.config
    pool = start_threads(options.attn)
    packs = options.precision == "int8" and options.experts.store != "off"
    longest = largest_step(options.attn, on_gpu=opened.device.type == "cuda")
    here = ExpertsHere(pool, options.experts.isa, packs=packs, max_tokens=longest)
    return load_engine(opened, here.take, Meter(), pool=pool), None


def _load_linked(opened: OpenModel, stack: ExitStack) -> tuple[Engine, ExpertsClient]:
    run_dir = stack.enter_context(open_run_dir(opened.config.run_dir or default_run_dir()))
    meter = Meter()
    pool = start_threads(opened.config.attn)
    link, (way, hop) = open_link(opened, run_dir.path, meter, pool)
    stack.enter_context(closing(link))
    stack.callback(hop.close)  # before the link unmaps its arenas
    engine = load_engine(opened, lambda _: way, meter, routed=link.expert_tokens, hop=hop, pool=pool)
    connect(link, way)
    return engine, link


def prefill_and_generate(
    model: LoadedModel,
    tokenizer: TextTokenizer | None,
    inputs: object,
    max_new_tokens: int | None = 10000,
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    stop: Iterable[str | int] | str | int | None = None,
    streamer: Streamer | None = None,
    callback: Callable[[int], Any] | None = None,
) -> list[int]:
    """Generate, and return the new tokens' ids, without the one that ended the answer.

    Args:
        model: from `optimize_and_load_gguf`.
        tokenizer: with `encode` and `decode`, as transformers' have; None if inputs and stops are ids.
        inputs: text, ids, a tensor [n] or [1, n], or a mapping with `input_ids`.
        max_new_tokens: most tokens to generate; the context bounds them too, and alone if this is None.
        temperature: None and 0 are greedy.
        top_p, top_k: None cuts nothing off, as 1 and 0 do.
        seed: as in the HTTP API.
        stop: texts or token ids that end the answer, beside the model's own end.
        streamer: transformers' interface; is given the prompt, then each token.
        callback: is given each token's id.

    Raises:
        RequestError: a value that cannot be served, e.g. a prompt longer than the context.
        PeerError: the expert service went away.
    """
    vocab_size = model.spec.vocab_size
    ids = token_ids(inputs, tokenizer, vocab_size)
    texts, stop_ids = stops(stop, tokenizer, vocab_size)
    ends = {*stop_ids, *end_ids(tokenizer, model.end_id, vocab_size)}
    sampling = sampling_params(max_new_tokens, temperature, top_p, top_k, seed)
    stop_texts = StopTexts(texts, tokenizer) if texts and tokenizer is not None else None
    if streamer is not None:
        streamer.put(torch.tensor(ids))
    made: list[int] = []
    with closing(model.stream(ids, sampling, sorted(ends))) as tokens:
        for token in tokens:
            if token in ends:
                break
            made.append(token)
            if streamer is not None:
                streamer.put(torch.tensor([token]))
            if callback is not None:
                callback(token)
            if stop_texts is not None and stop_texts.end(made):
                break
    if streamer is not None:
        streamer.end()
    return made


def _error(failed: RequestFailed) -> TrimaranError:
    match failed.code:
        case "unavailable":
            return PeerError(failed.message)
        case "overloaded":
            return OverloadedError(failed.message)
        case "internal":
            return TrimaranError(failed.message)
        case code:
            return RequestError(failed.message, code=code, param=failed.param)
