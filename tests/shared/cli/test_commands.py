"""The command line itself: help that teaches, flags that reach the configuration, errors in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trimaran import __version__
from trimaran.checkup import Finding
from trimaran.cli import single
from trimaran.cli.main import make_app
from trimaran.cli.main import run as run_main
from trimaran.cli.options import make_config, overrides
from trimaran.cli.serve import check_fit
from trimaran.errors import ConfigError, PlanError
from trimaran.machine import read_machine
from trimaran.synth import write_random_model
from typer.testing import CliRunner

COMMANDS = ("serve", "chat", "plan", "rules", "doctor", "trace", "gateway", "attn", "experts", "version")


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(make_app(), list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def test_help_lists_every_command() -> None:
    text = run("--help")
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples(command: str) -> None:
    text = run(command, "--help")
    assert "Examples:" in text
    assert f"trimaran {command}" in text.split("Examples:")[1]


def test_version() -> None:
    assert run("version").strip() == __version__
    assert run("--version").strip() == __version__


def test_a_bare_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main([]) == 0
    assert "Usage: trimaran" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sreve", "no such command 'sreve'"),
        ("--verison", "no such option: --verison"),
        ("serve extra", "(see `trimaran serve --help`)"),
        ("serve --prot 1", "no such option: --prot"),
        ("serve --port", "'--port' requires an argument"),
        ("serve --port abc", "invalid value for '--port'"),
        ("serve --port 70000", "gateway.port cannot be 70000 (allowed: whole number, 0 to 65535)"),
        ("serve --ready-timeout 0", "invalid value for '--ready-timeout'"),
        ("serve --device gpu", "attn.device cannot be 'gpu' (cpu, cuda:N"),
        ("serve --context 10G", "--context: '10G' is no number of tokens (write it as"),
        ("serve --set foo", "--set foo: no value (write it as"),
        ("serve --set =3", "--set =3: no option (write it as"),
        ("serve --set attn.max_runing=2", "(did you mean attn.max_running?)"),
        ("serve --config none.yaml", "none.yaml: No such file or directory (check the path"),
        ("serve --rules none.yaml", "none.yaml: No such file or directory (check the path"),
        ("chat --url http://localhost/x y", "has the path /x"),
        ("plan demo --ram 5x", "--ram: '5x' is no amount of memory (write it as"),
        ("plan demo --ram-bandwidth fast", "--ram-bandwidth: 'fast' is no amount"),
        ("plan demo --ram 1GiB --gpu-bandwidth ?", "--gpu-bandwidth: '?' is no amount"),
        ("plan demo --ram 1GiB --gpu-memory -1GiB", "--gpu-memory: '-1GiB' is no amount"),
        ("rules", "missing argument"),
        ("trace none/t.json", "its folder does not exist (make it first)"),
        ("trace --seconds 0", "invalid value for '--seconds'"),
        ("experts --list --purge", "(give one of them)"),
        ("experts bogus", "(see `trimaran experts --help`)"),
        ("experts record x --limit 5q", "--limit: '5q' is no amount of memory"),
    ],
)
def test_a_wrong_line_gets_one_line_back(line: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_main(line.split()) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err


def test_an_empty_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(["serve", "--model", ""]) == 3
    assert "the model's name is empty (give" in capsys.readouterr().err


def test_other_exit_codes_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of commands that end early, and of an interrupt."""
    monkeypatch.setattr("trimaran.cli.doctor.examine", lambda _machine: [Finding("torch", "missing", "none")])
    assert run_main(["doctor"]) == 1

    def interrupt(_machine: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trimaran.cli.doctor.examine", interrupt)
    assert run_main(["doctor"]) == 130


def test_flags_become_options() -> None:
    config = make_config(
        None, ["attn.max_running=4", "gateway.port=1"], port=9000, device="cpu", context="32K", debug=True
    )
    assert config.attn.max_running == 4
    assert config.gateway.port == 9000
    assert config.attn.device == "cpu"
    assert config.attn.context_length == 32768
    assert config.log_level == "debug"


def test_wrong_flags() -> None:
    with pytest.raises(ConfigError, match="--context: 'long' is no number of tokens"):
        overrides(None, context="long")


def test_plan_of_a_small_model(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "m.gguf", "v3", mix="Q4_K_M")
    text = run("plan", str(path), "--device", "cpu")
    assert "routed experts" in text
    assert "verdict: it fits" in text
    fields = json.loads(run("plan", str(path), "--gpu-memory", "8GiB", "--ram", "64GiB", "--json"))
    assert fields["problems"] == []
    assert fields["gpu"]["available"] == 8 << 30
    assert fields["ram"]["available"] == 64 << 30
    assert fields["speed"]["tokens_per_second"] is None
    two = run("plan", str(path), "--device", "cuda:0+cuda:1", "--gpu-memory", "8GiB", "--ram", "64GiB")
    assert "cuda:0: " in two
    assert "cuda:1: " in two
    assert "layers 0-" in two
    replicas = ("--set", "attn.replicas=cuda:0,cuda:1", "--ram", "64GiB")
    assert "attention on cuda:1" in run("plan", str(path), "--gpu-memory", "8GiB", *replicas)
    measured = json.loads(run("plan", str(path), "--device", "cpu", "--json"))
    assert measured["speed"]["tokens_per_second"] > 0


def test_serve_refuses_what_cannot_fit(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "m.gguf", "v3")
    config = make_config(None, None, model=str(path), device="cpu")
    machine = read_machine(with_gpus=False)
    check_fit(config, machine)
    small = replace(machine, memory=replace(machine.memory, limit=64 << 20))
    with pytest.raises(PlanError, match="does not fit"):
        check_fit(config, small)


def test_doctor_reports_as_json() -> None:
    result = CliRunner().invoke(make_app(), ["doctor", "--json"])
    report = json.loads(result.output)
    verdicts = {finding["subject"]: finding["verdict"] for finding in report["findings"]}
    assert verdicts["python"] == "ok"
    assert report["machine"]["memory"]["total"] > 0
    assert result.exit_code == (1 if "missing" in verdicts.values() else 0)
    assert all(finding["remedy"] for finding in report["findings"] if finding["verdict"] == "missing")


def test_a_single_service_takes_over_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def execv(_path: str, argv: list[str]) -> Any:
        calls.append(argv)
        raise SystemExit(0)

    monkeypatch.setattr(single.os, "execv", execv)
    run("gateway", "--model", "x.gguf", "--port", "9000", "--set", "log_format=json", "--config", "a.yaml")
    (argv,) = calls
    assert argv[1:4] == ["-P", "-m", "trimaran_gateway"]
    assert set(argv[4:]) == {
        "--set=model=x.gguf",
        "--set=gateway.port=9000",
        "--set=log_format=json",
        "--config=a.yaml",
    }


def test_rules_are_shown_as_a_table_and_as_json(tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "m.gguf", "v3", tokenizer=False)
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "- {match: {name: 'layers.[12].*up_proj$'}, replace: {implementation: dense}}\n"
        "- {match: {name: nowhere}, replace: {device: cpu}}\n"
    )
    text = run("rules", str(rules), "--model", str(model), "--device", "cpu")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["module", "kind", "rule", "implementation", "device", "dtype"]
    assert ["model.layers.1-2.mlp.shared_experts.up_proj", "linear", "1", "dense", "cpu"] in lines
    assert ["model.layers.0.mlp.up_proj", "linear", "packed", "cpu"] in lines
    assert "rules.yaml: rule 2: no module takes it" in text
    answer = json.loads(run("rules", str(rules), "--model", str(model), "--device", "cpu", "--json"))
    assert [row["path"] for row in answer["modules"] if row["rule"] == 1] == [
        f"model.layers.{layer}.mlp.shared_experts.up_proj" for layer in (1, 2)
    ]
    assert len(answer["notices"]) == 1


def test_the_plan_takes_rules_into_account(tmp_path: Path) -> None:
    model = write_random_model(tmp_path / "m.gguf", "v3", mix="Q8_0", tokenizer=False)
    rules = tmp_path / "rules.yaml"
    rules.write_text("- {match: {kind: head}, replace: {implementation: dense, device: 'cuda:0'}}\n")
    command = ("plan", str(model), "--ram-bandwidth", "10GB", "--json", "--gpu-memory", "8GiB")
    plain, ruled = (json.loads(run(*command, *more)) for more in ((), ("--rules", str(rules))))
    heads = [{part["part"]: part["nbytes"] for part in plan["items"]}["head"] for plan in (plain, ruled)]
    assert heads[0] < heads[1]
    assert ruled["device"].startswith("cuda:0")
