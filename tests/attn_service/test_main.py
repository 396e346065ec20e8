"""What keeps the service from starting is one line and an exit code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from trimaran.config import ExpertsConfig
from trimaran.config_loader import load_config, parse_assignments
from trimaran.errors import PeerError
from trimaran.lifecycle import Stop, run_guarded
from trimaran.synth import write_random_model
from trimaran_attn.experts_choice import choose_experts
from trimaran_attn.hop_steps import PlainSteps
from trimaran_attn.main import hop_config, serve


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model") / "model.gguf", "v3", tokenizer=False)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("option", "code", "line"),
    [
        ("experts.connect_timeout_s=0.3", 5, "no expert service at"),
        ("model=/nowhere/x.gguf", 3, "/nowhere/x.gguf: no such file"),
        ("model=/proc/cpuinfo", 3, "/proc/cpuinfo"),
        ("attn.device=cuda:9", 2, "attn.device is cuda:9"),
        ("attn.context_length=999999", 2, "context_length is 999999"),
        ("attn.kv_memory=1K", 4, "attn.kv_memory (1K)"),
        ("attn.kv_memory=much", 2, "much"),
    ],
)
def test_a_failure_to_start_is_one_line(
    option: str,
    code: int,
    line: str,
    model_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f"model={model_path}", f"run_dir={tmp_path}/run", "attn.device=cpu", "attn.threads=1", option]
    with closing(Stop()) as stop:
        assert run_guarded(lambda: serve(load_config(None, parse_assignments(options)), stop)) == code
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert line in errors[0]
    assert list((tmp_path / "run").glob("*.sock")) == []


def test_the_arenas_are_given_back_before_they_are_unmapped(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Hop(PlainSteps):
        def close(self) -> None:
            closed.append("hop")

    def choose(link: Any, *rest: Any, **options: Any) -> Any:
        close = link.close
        monkeypatch.setattr(link, "close", lambda: (closed.append("link"), close()))
        return choose_experts(link, *rest, **options)[0], Hop()

    monkeypatch.setattr("trimaran_attn.main.choose_experts", choose)
    options = [f"model={model_path}", f"run_dir={tmp_path}/run", "attn.device=cpu", "attn.threads=1"]
    options.append("experts.connect_timeout_s=0.3")
    with closing(Stop()) as stop, pytest.raises(PeerError):
        serve(load_config(None, parse_assignments(options)), stop)
    assert closed == ["hop", "link"]


def test_the_hop_carries_what_the_device_computes_in() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert hop_config(ExpertsConfig(), cpu).dtype == "f32"
    assert hop_config(ExpertsConfig(), gpu).dtype == "bf16"
    assert hop_config(ExpertsConfig(dtype="f32"), gpu).dtype == "f32"
