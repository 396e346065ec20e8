"""Wrong input gets one clear line and an exit code, or a 4xx; and the server stays up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from running_server import TRIMARAN, RunningServer, runtime_base
from trimaran.gguf import GGUFFile, TensorData, write_gguf

# --- the command line ---------------------------------------------------------------------------------------


def trimaran(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    with runtime_base() as base:
        result = subprocess.run(
            [TRIMARAN, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "XDG_RUNTIME_DIR": str(base), **environ},
        )
        assert list(base.iterdir()) == []
    return result


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """The error's only line."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def truncated(random_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "truncated.gguf"
    path.write_bytes(random_model.read_bytes()[:-1000])
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    return path


def rewritten(source: Path, target: Path, *, drop: str = "", architecture: str = "") -> Path:
    """A copy of a model without a tensor, or with another architecture."""
    with GGUFFile.open(source) as file:
        metadata = dict(file.metadata)
        if architecture:
            metadata["general.architecture"] = architecture
        tensors = [
            TensorData(info.name, info.type, info.shape, file.raw(info.name))
            for info in file.tensors.values()
            if info.name != drop
        ]
        write_gguf(target, metadata, tensors)
    return target


def naming(command: str, model: Path) -> list[str]:
    """The arguments that give a command its model."""
    if command == "plan":
        return [str(model)]
    return [f"--model={model}", *(["--port=0"] if command in {"serve", "gateway"} else [])]


@pytest.mark.parametrize("command", ["serve", "plan", "experts", "attn", "gateway"])
def test_missing_files(command: str) -> None:
    result = trimaran(command, *naming(command, Path("/no/such.gguf")))
    assert result.returncode == 3
    assert "/no/such.gguf: no such file" in one_line(result)


@pytest.mark.parametrize("command", ["serve", "plan"])
def test_truncated_files(command: str, truncated: Path) -> None:
    result = trimaran(
        command, *([str(truncated)] if command == "plan" else ["--port=0", f"--model={truncated}"])
    )
    assert result.returncode == 3
    assert "but the file ends at" in one_line(result)


@pytest.mark.parametrize("command", ["serve", "plan"])
def test_files_of_another_format(command: str, foreign: Path) -> None:
    result = trimaran(command, *naming(command, foreign))
    assert result.returncode == 3
    assert "GGUF" in one_line(result)


def test_another_architecture(random_model: Path, tmp_path: Path) -> None:
    path = rewritten(random_model, tmp_path / "llama.gguf", architecture="llama")
    result = trimaran("serve", "--port=0", f"--model={path}")
    assert result.returncode == 3
    assert "llama" in one_line(result)
    assert "deepseek2" in one_line(result)


def test_a_missing_tensor(random_model: Path, tmp_path: Path) -> None:
    path = rewritten(random_model, tmp_path / "hole.gguf", drop="blk.1.ffn_up_exps.weight")
    result = trimaran("serve", "--port=0", f"--model={path}")
    assert result.returncode == 3
    assert "blk.1.ffn_up_exps.weight" in one_line(result)


def test_an_impossible_plan(random_model: Path) -> None:
    result = trimaran("plan", str(random_model), "--ram", "1MiB")
    assert result.returncode == 4
    assert "too little" in one_line(result)


def test_a_misspelt_option(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("gateway:\n  prot: 80\n")
    result = trimaran("serve", "--config", str(config))
    assert result.returncode == 2
    assert one_line(result) == f"error: {config}:2: gateway.prot is no option (did you mean gateway.port?)"


def test_a_wrong_variable() -> None:
    result = trimaran("serve", TRIMARAN_GATEWAY__PORT="http")
    assert result.returncode == 2
    assert "TRIMARAN_GATEWAY__PORT" in one_line(result)


def test_attention_alone_waits_for_the_experts_then_gives_up(random_model: Path, tmp_path: Path) -> None:
    with runtime_base() as base:
        result = trimaran(
            "attn",
            f"--model={random_model}",
            "--device=cpu",
            f"--set=run_dir={base}",
            "--set=experts.connect_timeout_s=2",
            "--set=log_format=text",
        )
    assert result.returncode == 5
    *waiting, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert "expert" in last
    assert any("wait" in line for line in waiting), result.stderr


# --- HTTP ---------------------------------------------------------------------------------------------------


def chat(model: str, **changes: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, **changes}


def test_malformed_json(random_server: RunningServer) -> None:
    status, answer = random_server.post("/v1/chat/completions", b'{"model": ')
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"


def test_an_unknown_model(random_server: RunningServer) -> None:
    status, answer = random_server.post("/v1/chat/completions", chat("gpt-9"))
    assert status == 404
    assert "gpt-9" in answer["error"]["message"]


def test_a_prompt_over_the_context(random_server: RunningServer) -> None:
    length = random_server.get("/health")[1]["context_length"]
    body = {"model": random_server.model(), "prompt": [65] * (length + 1), "max_tokens": 1}
    status, answer = random_server.post("/v1/completions", body)
    assert status == 400
    assert answer["error"]["code"] == "context_length_exceeded"
    assert str(length) in answer["error"]["message"]


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": -1},
        {"max_tokens": 0},
        {"messages": []},
        {"messages": "Hi"},
        {"top_p": "much"},
        {"n": 0},
    ],
)
def test_wrong_fields(random_server: RunningServer, changes: dict[str, Any]) -> None:
    status, answer = random_server.post("/v1/chat/completions", chat(random_server.model(), **changes))
    assert 400 <= status < 500
    assert next(iter(changes)) in str(answer["error"])


def test_the_server_stays_up(random_server: RunningServer) -> None:
    assert random_server.get("/health")[0] == 200
    status, _ = random_server.post("/v1/chat/completions", chat(random_server.model()))
    assert status == 200
