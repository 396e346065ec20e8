"""An engine that speaks the real protocol and answers with scripted tokens."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

from trimaran.channel import AsyncServer, Received
from trimaran.wire import (
    Abort,
    EngineStats,
    EngineStatsRequest,
    EngineStatus,
    EngineStatusRequest,
    EngineToGateway,
    GatewayToEngine,
    Generate,
    RequestFailed,
    TokenBatch,
    TokenLogprob,
    Usage,
)
from trimaran_gateway.text.tokenizer import Tokenizer


@dataclass
class Script:
    """What the engine does with a request."""

    ids: list[int] = field(default_factory=list)
    finish: str = "stop"
    batch: int = 1
    delay_s: float = 0.0
    first_delay_s: float = 0.0
    failure: RequestFailed | None = None
    cached_tokens: int = 0
    scores_prompt: bool = True


class FakeEngine:
    """Speaks the wire protocol, with scripted tokens."""

    def __init__(self, endpoint: str, tokenizer: Tokenizer) -> None:
        self.endpoint = endpoint
        self.tokenizer = tokenizer
        self.generates: list[Generate] = []
        self.aborts: list[str] = []
        self.scripts: list[Script] = []
        self.status = EngineStatus(
            state="ready", instance="one", model_fingerprint="abcdef0123456789", context_length=4096
        )
        self._running: dict[str, asyncio.Task[None]] = {}

    def say(self, text: str, **options: Any) -> None:
        """Script the next request's answer as text; `<think>` and other markers become their tokens."""
        ids = self.tokenizer.encode(text)
        if options.get("finish", "stop") == "stop":
            ids.append(1)
        self.scripts.append(Script(ids=ids, **options))

    async def run(self) -> None:
        """Serve until cancelled."""
        server: AsyncServer[GatewayToEngine, EngineToGateway] = AsyncServer(self.endpoint, GatewayToEngine)
        try:
            while True:
                event = await server.recv()
                assert isinstance(event, Received)
                await self._take(server, event)
        finally:
            for task in self._running.values():
                task.cancel()
            server.close()

    async def _take(self, server: Any, event: Received[Any]) -> None:
        match event.message:
            case Generate(request_id=request_id) as message:
                self.generates.append(message)
                script = self.scripts.pop(0) if self.scripts else Script(ids=[1])
                self._running[request_id] = asyncio.create_task(
                    self._answer(server, event.peer, message, script)
                )
            case Abort(request_id=request_id):
                self.aborts.append(request_id)
                if request_id in self._running:
                    self._running.pop(request_id).cancel()
            case EngineStatusRequest():
                await server.send(event.peer, self.status)
            case EngineStatsRequest():
                await server.send(event.peer, STATS)

    async def _answer(self, server: Any, peer: bytes, message: Generate, script: Script) -> None:
        await asyncio.sleep(script.first_delay_s)
        if script.failure is not None:
            failure = RequestFailed(
                request_id=message.request_id,
                code=script.failure.code,
                message=script.failure.message,
                param=script.failure.param,
            )
            await server.send(peer, failure)
            return
        limit = message.sampling.max_tokens or len(script.ids)
        ids = script.ids[:limit]
        finish = script.finish if len(ids) == len(script.ids) else "length"
        usage = Usage(
            prompt_tokens=len(message.prompt_ids),
            generated_tokens=len(ids),
            cached_tokens=script.cached_tokens,
        )
        prompt_logprobs = _prompt_logprobs(message) if script.scores_prompt else None
        if prompt_logprobs:
            early, prompt_logprobs = prompt_logprobs[:2], prompt_logprobs[2:]
            await server.send(peer, TokenBatch(request_id=message.request_id, ids=[], prompt_logprobs=early))
        for start in range(0, len(ids), script.batch):
            part = ids[start : start + script.batch]
            last = start + script.batch >= len(ids)
            count = message.sampling.logprobs
            logprobs = None
            if count is not None:
                top = tuple((token, -0.5 - token) for token in range(3, 3 + count))
                top = (*top[:-1], (top[-1][0], -math.inf)) if top else ()  # a token that cannot come
                logprobs = [TokenLogprob(-0.25, top) for _ in part]
            await server.send(
                peer,
                TokenBatch(
                    request_id=message.request_id,
                    ids=part,
                    logprobs=logprobs,
                    prompt_logprobs=prompt_logprobs if start == 0 else None,
                    finish_reason=finish if last else None,
                    usage=usage if last else None,
                ),
            )
            await asyncio.sleep(script.delay_s)


def _prompt_logprobs(message: Generate) -> list[TokenLogprob] | None:
    """Of each token but the first: minus its position, and the ids from 10 on as alternatives."""
    count = message.sampling.prompt_logprobs
    if count is None:
        return None
    top = tuple((10 + rank, -0.5 - rank) for rank in range(count))
    return [TokenLogprob(-float(position), top) for position in range(1, len(message.prompt_ids))]


STATS = EngineStats(
    counters={
        "prompt_tokens_total": 7,
        'evictions_total{why="full"}': 3,
        'evictions_total{why="idle"}': 4,
        'request_success_total{finished_reason="stop"}': 1000,
        'request_failure_total{reason="internal"}': 2,
        "prefix_cache_hits_total": 5,
    },
    gauges={"num_requests_running": 1, "kv_cache_usage_perc": 0.5},
    observations={
        "attention_wait_on_experts_seconds": [0.001, 0.002],
        "time_to_first_token_seconds": [1000.0],
    },
    experts={
        shard: {
            "expert_tokens_total": 11,
            "expert_queue_depth": 2,
            'transport_bytes_total{direction="to_experts"}': 100,
            'transport_bytes_total{direction="from_experts"}': 200,
            'expert_layer_compute_seconds_bucket{le="0.001"}': 3,
            'expert_layer_compute_seconds_bucket{le="+Inf"}': 4,
            "expert_layer_compute_seconds_sum": 0.5,
        }
        for shard in ("0", "1")
    },
)
