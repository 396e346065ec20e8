"""The Python API on small models: what transformers says, by every way in, and errors that name the field."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import trimaran
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers_reference import greedy
from trimaran.errors import ConfigError, RequestError, TrimaranError
from trimaran.gguf import GGUFFile
from trimaran.run_dir import open_run_dir
from trimaran.synth import write_random_model
from trimaran.wire import RequestFailed, SamplingParams, TokenBatch
from trimaran_attn.api import LoadedModel, optimize_and_load_gguf, prefill_and_generate
from trimaran_attn.api_inputs import StopTexts
from trimaran_gateway.text.tokenizer import Tokenizer as OwnTokenizer

PROMPT = [(7 * i) % 200 for i in range(40)]
OPTIONS: dict[str, object] = {
    "precision": "exact",
    "attn.device": "cpu",
    "attn.threads": 1,
    "experts.threads": 1,
    "attn.max_step_tokens": 24,  # the prompt takes two chunks
    "attn.context_length": 128,
    "log_level": "error",
}
COUNT = 16


@pytest.fixture(scope="module", params=["v2-lite", "v3"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    return write_random_model(folder / "m.gguf", request.param, mix="Q8_0", seed=5)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LoadedModel]:
    with optimize_and_load_gguf(None, None, path, OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")
def reference(path: Path, build_reference: Callable[[Path], PreTrainedModel]) -> PreTrainedModel:
    return build_reference(path)


@pytest.fixture(scope="module")
def expected(reference: PreTrainedModel) -> list[int]:
    return greedy(reference, PROMPT, COUNT)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """A transformers tokeniser in which the text of token 7 is `w7`."""
    inner = Tokenizer(WordLevel({f"w{i}": i for i in range(284)}, unk_token="w0"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_import_is_light() -> None:
    names = "{'optimize_and_load_gguf', 'prefill_and_generate'} <= set(dir(trimaran))"
    code = f"import sys, trimaran; sys.exit('torch' in sys.modules or not {names})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert trimaran.optimize_and_load_gguf is optimize_and_load_gguf
    assert trimaran.prefill_and_generate is prefill_and_generate
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        trimaran.optimise  # noqa: B018


def test_greedy_tokens_are_those_of_transformers(model: LoadedModel, expected: list[int]) -> None:
    for inputs in (PROMPT, torch.tensor(PROMPT), torch.tensor([PROMPT]), {"input_ids": [PROMPT]}):
        assert prefill_and_generate(model, None, inputs, COUNT) == expected


def test_texts_of_a_transformers_tokenizer(
    model: LoadedModel, expected: list[int], words: PreTrainedTokenizerFast
) -> None:
    text = " ".join(f"w{i}" for i in PROMPT)
    assert prefill_and_generate(model, words, text, COUNT) == expected
    assert prefill_and_generate(model, words, words(text, return_tensors="pt"), COUNT) == expected
    third = expected[2]
    until = prefill_and_generate(model, words, text, COUNT, stop=f"w{third}")
    assert until == expected[: expected.index(third) + 1]
    assert prefill_and_generate(model, None, PROMPT, COUNT, stop=third) == expected[: expected.index(third)]


def test_streams(model: LoadedModel, expected: list[int]) -> None:
    seen: list[int] = []

    class Streamer:
        done = False

        def put(self, value: torch.Tensor) -> None:
            seen.extend(value.tolist())

        def end(self) -> None:
            self.done = True

    streamer, told = Streamer(), list[int]()
    prefill_and_generate(model, None, PROMPT, COUNT, streamer=streamer, callback=told.append)
    assert seen == PROMPT + expected
    assert streamer.done
    assert told == expected
    sampling = SamplingParams(temperature=0.0, max_tokens=COUNT)
    first, second = model.stream(PROMPT, sampling), model.stream(PROMPT[:9], sampling)
    assert [next(first), next(second)][0] == expected[0]
    second.close()  # leaves the other one alone, and nothing behind
    assert list(first) == expected[1:]
    assert model._events == {}
    third = model.stream(PROMPT, sampling)
    next(third)
    with model._lock:  # as a collector of garbage may, in the midst of a step
        third.close()
    assert len(model._events) == 1
    assert list(model.stream(PROMPT, sampling)) == expected
    assert model._events == {}


def test_threads_share_steps(model: LoadedModel, expected: list[int]) -> None:
    results: list[list[int]] = []
    threads = [
        Thread(target=lambda: results.append(prefill_and_generate(model, None, PROMPT, COUNT)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 3


def test_a_seed_makes_draws_reproducible(model: LoadedModel) -> None:
    draws = [
        prefill_and_generate(model, None, PROMPT, COUNT, temperature=1.0, top_p=0.95, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": "text"}, "inputs is text, but there is no tokenizer"),
        ({"inputs": [[1], [2]]}, r"inputs has shape \[2, 1\]"),
        ({"inputs": []}, "inputs is empty"),
        ({"inputs": torch.tensor([[]])}, "inputs is empty"),
        ({"inputs": torch.tensor([1.0])}, "of float32: give text, or the ids"),
        ({"inputs": torch.tensor([1.0], dtype=torch.bfloat16)}, "inputs is a tensor of torch.bfloat16"),
        ({"inputs": torch.tensor([1], device="meta")}, "inputs is a tensor of torch.int64"),
        ({"inputs": {"input_ids": [1, 2], "attention_mask": [1]}}, "attention_mask has 1 values for 2"),
        ({"inputs": {"input_ids": [1, 2], "attention_mask": [0, 0]}}, "inputs is empty"),
        ({"inputs": [[1, 2], [3]]}, "inputs is several prompts"),
        ({"inputs": {"ids": [1]}}, r"inputs has shape \[\]"),
        ({"inputs": [0.5]}, "of float64: give text, or the ids"),
        ({"inputs": [10**6]}, "inputs is 1000000, it must be a token id below"),
        ({"inputs": [-1]}, "inputs is -1"),
        ({"inputs": [1] * 500}, "context"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"temperature": "0.5"}, "temperature is '0.5', it must be a number"),
        ({"temperature": torch.tensor([0.5, 1.0])}, "temperature is tensor"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 1.5}, "top_k is 1.5, it must be a whole number"),
        ({"seed": "one"}, "seed is 'one', it must be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0, it must be at least 1"),
        ({"max_new_tokens": "9"}, "max_new_tokens is '9', it must be a whole number"),
        ({"stop": ""}, "stop is '': give texts or token ids"),
        ({"stop": [True]}, r"stop is \[True\]"),
        ({"stop": 4.5}, "stop is 4.5"),
        ({"stop": 10**6}, "stop is 1000000, it must be a token id below"),
        ({"tokenizer": SimpleNamespace(eos_token_id=10**6)}, "tokenizer.eos_token_id is 1000000"),
        ({"stop": "text"}, "stop has texts, but there is no tokenizer"),
        ({"stop": [1.5]}, r"stop is \[1.5\]"),
    ],
)
def test_bad_requests_name_the_field(model: LoadedModel, change: dict[str, Any], message: str) -> None:
    arguments = {"tokenizer": None, "inputs": PROMPT, "max_new_tokens": COUNT, **change}
    with pytest.raises(RequestError, match=message):
        prefill_and_generate(model, **arguments)


def test_none_and_numbers_of_other_libraries(model: LoadedModel, expected: list[int]) -> None:
    none = {"temperature": None, "top_p": None, "top_k": None, "seed": None, "stop": None}
    assert prefill_and_generate(model, None, PROMPT, COUNT, **none) == expected
    to_the_end = prefill_and_generate(model, None, PROMPT, None)
    assert to_the_end[:COUNT] == expected
    assert len(PROMPT) + len(to_the_end) == OPTIONS["attn.context_length"] or model.end_id is not None
    for narrow in (np.array(PROMPT, np.uint8), torch.tensor(PROMPT, dtype=torch.int16)):
        assert prefill_and_generate(model, None, narrow, np.int64(COUNT)) == expected
    stop = expected[2]
    until = expected[: expected.index(stop)]
    for same in (np.int64(stop), np.array([stop]), torch.tensor(stop), {stop}):
        assert prefill_and_generate(model, None, PROMPT, COUNT, stop=same) == until
    seeds = (2**63, np.uint64(2**63))
    drawn = [
        prefill_and_generate(
            model, None, PROMPT, COUNT, temperature=np.float32(1), top_k=np.int32(50), seed=seed
        )
        for seed in seeds
    ]
    assert drawn[0] == drawn[1] != expected


def test_hidden_tokens_of_a_padded_prompt_do_not_count(model: LoadedModel, expected: list[int]) -> None:
    padded = {"input_ids": [[0, 0, *PROMPT]], "attention_mask": torch.tensor([[0, 0] + [1] * len(PROMPT)])}
    assert prefill_and_generate(model, None, padded, COUNT) == expected


def test_a_stop_text_is_found_however_long_the_answer(words: PreTrainedTokenizerFast) -> None:
    text, ids = "w7 w8", [*range(9, 200), 7]
    stop = StopTexts([text, "none"], words)
    assert not stop.end(ids)
    assert stop.end([*ids, 8])
    assert not stop.end([*ids, 9, 8])


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler: whoever runs the tests in the background may have Ctrl-C ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_waits_for_the_step(
    model: LoadedModel, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model._open()
    step, interrupted = engine.step, list[int]()

    def stepped() -> Sequence[TokenBatch | RequestFailed]:
        if len(interrupted) < presses:
            interrupted.append(1)
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
        return step()

    other = model.stream(PROMPT, SamplingParams(temperature=0.0, max_tokens=COUNT))
    first = next(other)
    presses = 1
    monkeypatch.setattr(engine, "step", stepped)
    with pytest.raises(KeyboardInterrupt):
        prefill_and_generate(model, None, PROMPT, COUNT)
    monkeypatch.undo()
    assert [first, *other] == expected  # its own tokens, none of them lost
    last = model.stream(PROMPT, SamplingParams(temperature=0.0, max_tokens=COUNT))
    next(last)
    presses = 2
    interrupted.clear()
    monkeypatch.setattr(engine, "step", stepped)
    with pytest.raises(KeyboardInterrupt):
        prefill_and_generate(model, None, PROMPT, COUNT)
    monkeypatch.undo()
    with pytest.raises(TrimaranError, match="a step broke off: KeyboardInterrupt"):
        next(last)
    assert model._events == {}
    assert prefill_and_generate(model, None, PROMPT, COUNT) == expected
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_files_own_model_is_accepted_and_others_are_not(
    path: Path, model: LoadedModel, reference: PreTrainedModel
) -> None:
    for same in (reference, reference.config, model.spec):
        optimize_and_load_gguf(same, None, path, OPTIONS).close()
    other = type(reference.config)(**{**reference.config.to_dict(), "hidden_size": 512})
    with pytest.raises(ConfigError, match=r"m\.gguf: hidden_size is \d+, the model given has 512"):
        optimize_and_load_gguf(other, None, path, OPTIONS)
    with pytest.raises(ConfigError, match="model is a str"):
        optimize_and_load_gguf("r1", None, path, OPTIONS)
    with pytest.raises(ConfigError, match="experts is 'there'"):
        optimize_and_load_gguf(None, None, path, OPTIONS, experts="there")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"attn\.devise is no option"):
        optimize_and_load_gguf(None, None, path, {"attn.devise": "cpu"})


def test_rules_packed_experts_and_the_end(path: Path, tmp_path: Path, expected: list[int]) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {match: {kind: head}, replace: {implementation: dense}}\n")
    with optimize_and_load_gguf(None, rules, path, OPTIONS) as ruled:
        assert prefill_and_generate(ruled, None, PROMPT, COUNT) == expected
        running = ruled.stream(PROMPT, SamplingParams(temperature=0.0))
        next(running)
    with pytest.raises(TrimaranError, match="the model is closed"):
        next(running)
    with pytest.raises(TrimaranError, match="the model is closed"):
        prefill_and_generate(ruled, None, PROMPT, COUNT)
    ruled.close()
    with optimize_and_load_gguf(None, None, path, {**OPTIONS, "precision": "int8"}) as rounded:
        assert prefill_and_generate(rounded, None, PROMPT, 1) == expected[:1]


def test_the_gateways_tokenizer(model: LoadedModel, path: Path, expected: list[int]) -> None:
    with GGUFFile.open(path) as file:
        own = OwnTokenizer.from_metadata(file.metadata)
    text = own.decode([65, 66, 67])
    ids = own.encode(text)
    assert prefill_and_generate(model, own, text, 4) == prefill_and_generate(model, None, ids, 4)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with open_run_dir() as opened:
        yield opened.path


@pytest.mark.e2e
def test_experts_of_the_service(path: Path, run_dir: Path, expected: list[int]) -> None:
    options = {**OPTIONS, "run_dir": str(run_dir), "experts.connect_timeout_s": 90.0}
    settings = ("precision=exact", "experts.threads=1", f"model={path}", f"run_dir={run_dir}")
    command = [sys.executable, "-m", "trimaran_experts", *(f"--set={setting}" for setting in settings)]
    service = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with optimize_and_load_gguf(None, None, path, options, experts="service") as model:
            assert prefill_and_generate(model, None, PROMPT, COUNT) == expected
    finally:
        service.kill()
        service.wait()
