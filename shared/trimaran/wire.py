"""Messages that cross process borders: msgspec structs, msgpack on the wire, never pickle.

Each direction of each link is one tagged union, so that a reader decodes exactly what it may receive and
rejects everything else. `PROTOCOL_VERSION` travels in every hello and changes with any incompatible change.
"""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 4
HEARTBEAT_S = 1.0
"""How often each side of the expert link sends a `Heartbeat`."""
SILENCE_S = 3.0
"""A peer of the expert link that has said nothing for so long is gone."""
UNKNOWN_CLIENT = "unknown client, say hello"
"""Reason of the `Refused` that answers anything but a hello from a stranger."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    """Base of every message; the class name is the tag."""


# --- gateway ↔ attention service ----------------------------------------------------------------------------


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


class TraceSpan(msgspec.Struct, frozen=True, array_like=True):
    """What a thread did, in nanoseconds of the host's monotonic clock; `layer` is -1 outside of layers."""

    thread: str
    name: str
    start_ns: int
    end_ns: int
    layer: int = -1
    tokens: int = 0


class EngineTrace(Message, frozen=True, tag="trace"):
    """Whether a timeline is being recorded, and its spans if they were taken."""

    active: bool
    spans: list[TraceSpan] = []


EngineToGateway = TokenBatch | RequestFailed | EngineStatus | EngineStats | EngineTrace


# --- attention service ↔ expert service ---------------------------------------------------------------------


class Hello(Message, frozen=True, tag="hello"):
    """First message of an attention service: what it loaded, and how it wants to talk.

    notifier: "doorbell", "zmq" or "tcp"; the first two name an arena file, "tcp" sends tensors as frames.
    dtype: element type of x and y in the arena or the frames, "f32" or "bf16".
    """

    protocol: int
    model_fingerprint: str
    hidden_size: int
    top_k: int
    n_experts: int
    layers: tuple[int, ...]
    dtype: str
    notifier: str
    arena: str | None = None
    client: str = ""


class Submit(Message, frozen=True, tag="submit"):
    """Compute one layer of one slot. With "tcp", x, ids and weights follow as further frames."""

    slot: int
    sequence: int
    layer: int
    n_tokens: int


class Drain(Message, frozen=True, tag="drain"):
    """Finish what is in flight, then answer no more of this client's submits: it says goodbye."""


class Heartbeat(Message, frozen=True, tag="beat"):
    """Sent by each side at least every second; three missed ones mean the peer is gone."""

    sent_ns: int


class ExpertStatsRequest(Message, frozen=True, tag="stats?"):
    """Ask for an `ExpertStats`."""


class ExpertTraceRequest(Message, frozen=True, tag="trace?"):
    """Ask for an `ExpertTrace` of the calls that ended at `since_ns` (monotonic clock) or later."""

    since_ns: int


class Record(Message, frozen=True, tag="record"):
    """Write layer calls to a file for replay, from now on; answered by `Recorded`, as are the other actions.

    action: "start" (a fresh file at `path`, of up to `max_bytes`), "look" or "stop".
    """

    action: str
    path: str = ""
    max_bytes: int = 0


class Borrowed(Message, frozen=True, tag="borrowed"):
    """What a client computed itself from lent weights (see `LentWeights`), since it began.

    Sent when it begins, then with every heartbeat.

    Attributes:
        books: random, of what the counts are of; other books began again from zero.
        counters: of its call gate.
        expert_tokens, layer_times: as of `ExpertStats`.
    """

    books: str
    counters: dict[str, int]
    expert_tokens: dict[int, list[int]] = {}
    layer_times: dict[int, list[int]] = {}


EngineToExperts = (
    Hello | Submit | Drain | Heartbeat | ExpertStatsRequest | ExpertTraceRequest | Record | Borrowed
)


class Loading(Message, frozen=True, tag="loading"):
    """Answers a hello (and repeats) while weights are still being read; `progress` is 0 to 1."""

    progress: float


class LentMatrix(msgspec.Struct, frozen=True, array_like=True):
    """One matrix of all of a layer's experts: GGUF type id, its place in the file, whether it is packed."""

    type: int
    offset: int
    nbytes: int
    packed: bool


class LentWeights(msgspec.Struct, frozen=True, kw_only=True):
    """A shard's weights, for a client of the same host and user to map and compute from.

    Attributes:
        path: of the file; device, inode: tell whether it still is that file.
        layers: by layer, gate, up and down.
        cpus: that the shard computes on.
    """

    path: str
    device: int
    inode: int
    layers: dict[int, tuple[LentMatrix, LentMatrix, LentMatrix]]
    cpus: tuple[int, ...]


class Ready(Message, frozen=True, tag="ready"):
    """The shard serves this client now.

    experts, columns: the half-open ranges of expert ids, and of their intermediate columns, that it owns.
    n_columns: how many intermediate columns the model has.
    lent: its weights, to a client that shares memory with it, if they lie in a file.
    """

    shard: str
    isa: str
    experts: tuple[int, int]
    columns: tuple[int, int]
    n_columns: int
    threads: int
    lent: LentWeights | None = None


class Refused(Message, frozen=True, tag="refused"):
    """The hello cannot be served; `differences` lists each field as "name: ours X, yours Y"."""

    reason: str
    differences: tuple[str, ...] = ()


class Done(Message, frozen=True, tag="done"):
    """A submit finished; status 0 is success (see `Status`). With "tcp", y follows as a further frame."""

    slot: int
    sequence: int
    status: int
    message: str = ""


class ExpertStats(Message, frozen=True, tag="stats"):
    """Counters of one expert service since it started.

    A histogram is among the counters as Prometheus writes it: ``name_bucket{le="0.001"}``, each bucket with
    all below it, and ``name_sum``.

    expert_tokens: by layer, how many tokens were routed to each expert; 0 for other shards' experts.
    layer_times: by layer, how many engine calls took up to each of `time_bounds_ns`, and longer.
    """

    shard: str
    counters: dict[str, float]
    gauges: dict[str, float] = {}
    expert_tokens: dict[int, list[int]] = {}
    layer_times: dict[int, list[int]] = {}
    time_bounds_ns: list[int] = []


class ExpertTrace(Message, frozen=True, tag="trace"):
    """When a shard computed its latest calls, whoever asked for them: some thousands are kept."""

    shard: str
    spans: list[TraceSpan] = []


class Recorded(Message, frozen=True, tag="recorded"):
    """How a recording is; `error` is empty unless it could not be begun, `full` once calls are left out."""

    calls: int = 0
    nbytes: int = 0
    full: bool = False
    error: str = ""


ExpertsToEngine = Loading | Ready | Refused | Done | Heartbeat | ExpertStats | ExpertTrace | Recorded


class Status:
    """Status codes of a slot, shared with `kernels/csrc/hop/arena.h`."""

    OK = 0
    BAD_LAYER = 1
    BAD_TOKEN_COUNT = 2
    BAD_EXPERT_ID = 3
    BAD_SLOT = 4
    NOT_FINITE = 5
    INTERNAL = 6
    SHUTTING_DOWN = 7
