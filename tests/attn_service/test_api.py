"""The Python API on small models: what transformers says, by every way in, and errors that name the field."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

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
from trimaran.wire import SamplingParams
from trimaran_attn.api import LoadedModel, optimize_and_load_gguf, prefill_and_generate
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
        ({"inputs": []}, r"inputs has shape \[0\]"),
        ({"inputs": [[1, 2], [3]]}, "inputs is several prompts"),
        ({"inputs": {"ids": [1]}}, r"inputs has shape \[\]"),
        ({"inputs": [0.5]}, "of float64: give text, or the ids"),
        ({"inputs": [10**6]}, "prompt_ids is 1000000"),
        ({"inputs": [1] * 500}, "context"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"max_new_tokens": 0}, "max_tokens is 0"),
        ({"stop": "text"}, "stop has texts, but there is no tokenizer"),
        ({"stop": [1.5]}, r"stop is \[1.5\]"),
    ],
)
def test_bad_requests_name_the_field(model: LoadedModel, change: dict[str, Any], message: str) -> None:
    arguments = {"inputs": PROMPT, "max_new_tokens": COUNT, **change}
    with pytest.raises(RequestError, match=message):
        prefill_and_generate(model, None, **arguments)


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
