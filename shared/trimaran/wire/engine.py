"""Between gateway and attention service: requests and their tokens, the engine's state, timelines."""

from __future__ import annotations

import msgspec

from trimaran.wire.messages import Message, TraceSpan


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is drawn. The defaults sample from the model's own distribution.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set with this probability mass.
        min_p: drop tokens less likely than min_p × the most likely one's probability.
        seed: makes the request's draws reproducible, whatever else is in the batch.
        frequency_penalty: subtracted from a token's logit per earlier occurrence in the output.
        presence_penalty: subtracted once if the token occurred in the output.
        repetition_penalty: divides positive (multiplies negative) logits of tokens in prompt or output.
        logit_bias: token id → added to its logit.
        max_tokens: upper bound of generated tokens; None: to the end of the context.
        min_tokens: stop ids are not drawn before this many tokens.
        ignore_eos: go on to max_tokens, whatever is drawn.
        logprobs: how many of the most likely tokens to report per position; None reports nothing.
        prompt_logprobs: the same for the prompt's tokens (from the second on, the first follows nothing).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


class LarkGrammar(msgspec.Struct, frozen=True, kw_only=True, tag="lark", forbid_unknown_fields=True):
    """What a request may generate, in llguidance's dialect of Lark; rule `start` is all of the output.

    The dialect has JSON schemas (`%json {…}`) and tokens by id (`<[128799]>`). A generation ends with "stop"
    when nothing can follow, or when a stop id is drawn where the grammar may end.
    """

    text: str


class Generate(Message, frozen=True, tag="generate"):
    """Continue `prompt_ids`. `deadline` is in seconds from receipt; a lower `priority` value runs earlier.

    `grammar` constrains the output to what it allows; "length" may still cut it off.
    """

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    stop_ids: tuple[int, ...] = ()
    grammar: LarkGrammar | None = None
    priority: int = 0
    deadline: float | None = None


class Abort(Message, frozen=True, tag="abort"):
    """Forget a request; unknown ids are ignored, for its last batch may already be on the way."""

    request_id: str


class EngineStatusRequest(Message, frozen=True, tag="status?"):
    """Ask for an `EngineStatus`."""


class EngineStatsRequest(Message, frozen=True, tag="stats?"):
    """Ask for an `EngineStats`."""


class StartTrace(Message, frozen=True, tag="trace+"):
    """Record a timeline from now on, of `steps` engine steps or until it is taken. Not answered."""

    steps: int | None = None


class TraceRequest(Message, frozen=True, tag="trace?"):
    """Ask for an `EngineTrace`. With `take` the recording ends and its spans are sent, once."""

    take: bool = False


GatewayToEngine = Generate | Abort | EngineStatusRequest | EngineStatsRequest | StartTrace | TraceRequest


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token's natural-log probability and its `top` alternatives as (token id, log probability)."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Token counts of one request and where its time went (seconds, monotonic clock differences)."""

    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class TokenBatch(Message, frozen=True, tag="tokens"):
    """New tokens of one request; the last batch carries finish_reason and usage.

    finish_reason: "stop" (a stop id was drawn, it is the last of `ids`; or the grammar is complete),
    "length", "abort", "deadline".
    prompt_logprobs: if asked for, the next of those of `prompt_ids[1:]`. They come in order, in as many
    batches as the engine likes (`ids` may be empty there), the last with the first generated ids at the
    latest.
    """

    request_id: str
    ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


class RequestFailed(Message, frozen=True, tag="failed"):
    """A request ended without an answer.

    code: "context_length_exceeded" or "invalid_request" (a 4xx), "overloaded" (429/503), "unavailable" (an
    expert shard is gone; 503) or "internal" (500).
    """

    request_id: str
    code: str
    message: str
    param: str | None = None


class EngineStatus(Message, frozen=True, tag="status"):
    """How the engine is; answers EngineStatusRequest, and is also sent whenever `state` changes.

    state: "loading", "ready", "degraded" (an expert shard is away; requests wait or fail), "draining".
    progress: 0 to 1 while loading.
    instance: random per engine process; another value means that every earlier request is lost.
    """

    state: str
    instance: str = ""
    detail: str = ""
    progress: float = 0.0
    model_fingerprint: str = ""
    context_length: int = 0
    max_waiting: int = 0


class EngineStats(Message, frozen=True, tag="stats"):
    """Counters and gauges of the engine and, by shard name, of its expert services.

    Names are the exported metrics' without the `trimaran_` prefix; `observations` holds histogram samples, by
    name, since the last stats message. `expert_tokens` sums the shards', each token once. With another
    `instance` than the last message's (see `EngineStatus`) the engine's counters began again from zero.
    """

    counters: dict[str, float]
    gauges: dict[str, float]
    observations: dict[str, list[float]] = {}
    experts: dict[str, dict[str, float]] = {}
    expert_tokens: dict[int, list[int]] = {}
    instance: str = ""


class EngineTrace(Message, frozen=True, tag="trace"):
    """Whether a timeline is being recorded, and its spans if they were taken."""

    active: bool
    spans: list[TraceSpan] = []


EngineToGateway = TokenBatch | RequestFailed | EngineStatus | EngineStats | EngineTrace
