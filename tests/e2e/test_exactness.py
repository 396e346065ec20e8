"""Greedy answers over HTTP, through the three real processes, are those of transformers in float32."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import interpreted  # noqa: F401 transformers imports Triton
import pytest
import torch
from running_server import RunningServer, running_server
from transformers import PreTrainedModel
from transformers_reference import greedy, reference_model
from trimaran.gguf import GGUFFile
from trimaran.synth import write_random_model

N_TOKENS = 64
CONTROL = 3  # tokenizer.ggml.token_type
PROMPTS = [[(7 * i + 3 * j) % 200 for j in range(n)] for i, n in enumerate((1, 30, 80))]


@pytest.fixture(
    scope="module",
    params=[("v3", "split", "Q4_K_M"), ("v2-lite", "kv_b", "Q8_0"), ("v2", "split", "Q5_0")],
    ids="-".join,
)
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape, layout, mix = request.param
    path = tmp_path_factory.mktemp("exact") / "model.gguf"
    return write_random_model(path, shape, layout=layout, mix=mix, seed=5)


@pytest.fixture(scope="module")
def server(model_path: Path) -> Iterator[RunningServer]:
    with serving(model_path, "exact") as server:
        yield server


def serving(path: Path, precision: str) -> AbstractContextManager[RunningServer]:
    options = ("--device", "cpu", "--no-greeting", "--set", f"precision={precision}")
    return running_server("--model", str(path), *options)


@pytest.fixture(scope="module")
def reference(model_path: Path) -> Iterator[PreTrainedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the services compute meanwhile
    yield reference_model(model_path)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def hidden(model_path: Path) -> set[int]:
    """Ids of control tokens: they have text, but completions do not show it."""
    with GGUFFile.open(model_path) as file:
        kinds = file.metadata["tokenizer.ggml.token_type"]
        return {token for token, kind in enumerate(kinds) if kind == CONTROL}


def test_three_requests_at_once_answer_as_the_reference(
    server: RunningServer, reference: PreTrainedModel, hidden: set[int]
) -> None:
    def ask(prompt: list[int]) -> tuple[str, int]:
        answer = server.complete(prompt, max_tokens=N_TOKENS, ignore_eos=True)
        return answer["choices"][0]["text"], answer["usage"]["completion_tokens"]

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(ask, PROMPTS))
    for prompt, (text, count) in zip(PROMPTS, answers, strict=True):
        expected = [token for token in greedy(reference, prompt, N_TOKENS) if token not in hidden]
        status, detokenized = server.post("/detokenize", {"tokens": expected})
        assert status == 200
        assert count == N_TOKENS
        assert text == detokenized["content"]


def test_log_probabilities_are_those_of_the_reference(
    server: RunningServer, reference: PreTrainedModel
) -> None:
    prompt = PROMPTS[1]
    tokens = greedy(reference, prompt, N_TOKENS)
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
    answer = server.complete(prompt, max_tokens=N_TOKENS, ignore_eos=True, logprobs=1)
    got = torch.tensor(answer["choices"][0]["logprobs"]["token_logprobs"])
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_int8_activations_stay_near_the_reference(model_path: Path, reference: PreTrainedModel) -> None:
    """The default precision: what a request pays for speed, in the log probabilities of a given text."""
    prompt = PROMPTS[2]
    with torch.no_grad():
        logits = reference(torch.tensor([prompt])).logits[0, :-1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
    with serving(model_path, "int8") as server:
        answer = server.complete(prompt, max_tokens=1, echo=True, logprobs=1)
    got = torch.tensor(answer["choices"][0]["logprobs"]["token_logprobs"][1 : len(prompt)])
    errors, spread = (got - expected).abs(), expected.std()  # random weights make logits of any size
    assert errors.mean() < 0.03 * spread
    assert errors.max() < 0.5 * spread  # where a near tie of experts turns
