"""Messages that cross process borders: msgspec structs, msgpack on the wire, never pickle.

Each direction of each link is one tagged union, so that a reader decodes exactly what it may receive and
rejects everything else.

messages  what all have in common
engine    gateway ↔ attention service: GatewayToEngine, EngineToGateway
experts   attention service ↔ expert service: EngineToExperts, ExpertsToEngine
"""

from __future__ import annotations

from trimaran.wire.engine import (
    Abort,
    EngineStats,
    EngineStatsRequest,
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    EngineTrace,
    GatewayToEngine,
    Generate,
    LarkGrammar,
    RequestFailed,
    SamplingParams,
    StartTrace,
    TokenBatch,
    TokenLogprob,
    TraceRequest,
    Usage,
)
from trimaran.wire.experts import (
    HEARTBEAT_S,
    SILENCE_S,
    UNKNOWN_CLIENT,
    Borrowed,
    Done,
    Drain,
    EngineToExperts,
    ExpertStats,
    ExpertStatsRequest,
    ExpertsToEngine,
    ExpertTrace,
    ExpertTraceRequest,
    Heartbeat,
    Hello,
    LentMatrix,
    LentWeights,
    Loading,
    Ready,
    Record,
    Recorded,
    Refused,
    Status,
    Submit,
)
from trimaran.wire.messages import (
    PROTOCOL_VERSION,
    Message,
    TraceSpan,
)

__all__ = [
    "HEARTBEAT_S",
    "PROTOCOL_VERSION",
    "SILENCE_S",
    "UNKNOWN_CLIENT",
    "Abort",
    "Borrowed",
    "Done",
    "Drain",
    "EngineStats",
    "EngineStatsRequest",
    "EngineStatus",
    "EngineStatusRequest",
    "EngineToExperts",
    "EngineToGateway",
    "EngineTrace",
    "ExpertStats",
    "ExpertStatsRequest",
    "ExpertTrace",
    "ExpertTraceRequest",
    "ExpertsToEngine",
    "GatewayToEngine",
    "Generate",
    "Heartbeat",
    "Hello",
    "LarkGrammar",
    "LentMatrix",
    "LentWeights",
    "Loading",
    "Message",
    "Ready",
    "Record",
    "Recorded",
    "Refused",
    "RequestFailed",
    "SamplingParams",
    "StartTrace",
    "Status",
    "Submit",
    "TokenBatch",
    "TokenLogprob",
    "TraceRequest",
    "TraceSpan",
    "Usage",
]
