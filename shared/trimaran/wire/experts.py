"""Between attention service and expert service: hello, layer calls, heartbeats, statistics."""

from __future__ import annotations

import msgspec

from trimaran.wire.messages import Message, TraceSpan

HEARTBEAT_S = 1.0
"""How often each side sends a `Heartbeat`."""
SILENCE_S = 3.0
"""A peer that has said nothing for so long is gone."""
UNKNOWN_CLIENT = "unknown client, say hello"
"""Reason of the `Refused` that answers anything but a hello from a stranger."""


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
    """Sent by each side every `HEARTBEAT_S`."""

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
