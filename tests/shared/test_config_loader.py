from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trimaran.config import Config
from trimaran.config_loader import dump_config, load_config, option_environment, parse_assignments
from trimaran.config_options import nearest, options
from trimaran.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "server.yaml"
    path.write_text(text)
    return path


def message(path: Path | None, overrides: dict[str, object], environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, environ)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_nothing_gives_the_defaults() -> None:
    assert load_config(None, {}, {}) == Config()


def test_flags_beat_environment_beats_file(tmp_path: Path) -> None:
    path = write(tmp_path, "gateway: {port: 1, host: a}\nattn:\n  max_running: 3\n  threads: 2\n")
    environ = {"TRIMARAN_GATEWAY__PORT": "2", "TRIMARAN_GATEWAY__HOST": "b"}
    config = load_config(path, {"gateway.port": 3}, environ)
    assert (config.gateway.port, config.gateway.host) == (3, "b")
    assert (config.attn.max_running, config.attn.threads) == (3, 2)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "gateway:\n", "{}"])
def test_empty_files_and_sections_are_fine(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text), {}, {}) == Config()


def test_text_becomes_the_options_type() -> None:
    environ = {
        "TRIMARAN_ATTN__THREADS": "none",
        "TRIMARAN_GATEWAY__CORS_ORIGINS": "http://a, http://b",
        "TRIMARAN_GATEWAY__REQUEST_TIMEOUT_S": "1.5",
        "TRIMARAN_MODEL": "123",
    }
    config = load_config(None, {"experts.experts": "0-127"}, environ)
    assert config.attn.threads is None
    assert config.gateway.cors_origins == ("http://a", "http://b")
    assert config.gateway.request_timeout_s == 1.5
    assert config.model == "123"
    assert config.experts.experts == "0-127"


def test_an_unknown_option_names_file_line_and_spelling(tmp_path: Path) -> None:
    path = write(tmp_path, "model: demo\ngateway:\n  host: x\n  prot: 80\n")
    assert message(path, {}, {}) == f"{path}:4: gateway.prot is no option (did you mean gateway.port?)"


def test_an_option_at_the_wrong_depth_is_found(tmp_path: Path) -> None:
    assert "did you mean gateway.port?" in message(write(tmp_path, "port: 80\n"), {}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gateway:\n  port: 70000\n", ":2: gateway.port cannot be 70000 (allowed: whole number, 0 to 65535)"),
        ("gateway:\n  port: eighty\n", ":2: gateway.port cannot be 'eighty' (allowed: whole number"),
        ('gateway: {port: "80"}\n', ":1: gateway.port cannot be '80' (allowed: whole number"),
        ("gateway: {port: null}\n", ":1: gateway.port cannot be None (allowed: "),
        ("attn: {device: tpu}\n", ":1: attn.device cannot be 'tpu' (cpu, cuda:N, or several GPUs"),
        ("experts: {isa: sse}\n", "experts.isa cannot be 'sse' (allowed: one of"),
        (
            "attn: {gpu_memory: lots}\n",
            "attn.gpu_memory cannot be 'lots' (GPU memory to plan for, e.g. 24GiB",
        ),
        ("gateway: {cors_origins: ['http://a/']}\n", "cors_origins cannot be ['http://a/'] (origins allowed"),
        ("attn: {replicas: [gpu]}\n", "attn.replicas cannot be ['gpu'] (devices of several"),
        ("gateway: 5\n", ":1: gateway must be a mapping"),
        ("- 5\n", ":1: the file must be a mapping"),
        ("model: a\nmodel: b\n", ":2: model is given twice"),
        ("model: [a\n", "not valid YAML"),
        ("model: !!python/object:os.system x\n", ":1: model: this YAML value cannot be read"),
        ("? [a]\n: 1\n", ":1: ? is no option"),
        ("experts: {experts: 9-3}\n", "experts.experts: the range 9-3 is empty"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(write(tmp_path, text), {}, {})


def test_unreadable_files(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "gone.yaml", {}, {})
    assert "Is a directory" in message(tmp_path, {}, {})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"GGUF\xff\xfe")
    assert "not UTF-8" in message(binary, {}, {})
    binary.write_bytes(b"#" * ((1 << 20) + 1))
    assert "no configuration file" in message(binary, {}, {})


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("TRIMARAN_GATEWAY__PROT", "did you mean TRIMARAN_GATEWAY__PORT?"),
        ("TRIMARAN_MODLE", "did you mean TRIMARAN_MODEL?"),
        ("TRIMARAN_X__Y", "sets no option"),
    ],
)
def test_misspelt_variables(variable: str, expected: str) -> None:
    text = message(None, {}, {variable: "1"})
    assert text.startswith(f"environment variable {variable}")
    assert expected in text


@pytest.mark.parametrize(
    "variable", ["TRIMARAN_PORT", "TRIMARAN_GATEWAY_PORT", "TRIMARAN_GATEWAY_SERVICE_HOST", "OTHER__X"]
)
def test_variables_that_kubernetes_makes_pass(variable: str) -> None:
    assert load_config(None, {}, {variable: "tcp://10.0.0.1:80"}) == Config()


def test_a_wrong_value_of_a_variable_names_it() -> None:
    text = message(None, {}, {"TRIMARAN_GATEWAY__PORT": "http"})
    assert text.startswith("environment variable TRIMARAN_GATEWAY__PORT: gateway.port cannot be 'http'")


def test_wrong_flags() -> None:
    assert "did you mean attn.max_running?" in message(None, {"attn.max_runing": 1}, {})
    assert "gateway.port cannot be -1" in message(None, {"gateway.port": -1}, {})
    with pytest.raises(ConfigError, match="no value"):
        parse_assignments(["attn.max_running"])
    assert parse_assignments(["a.b = c=d"]) == {"a.b": "c=d"}


def test_dumped_configurations_read_back(tmp_path: Path) -> None:
    config = load_config(
        None, {"gateway.cors_origins": "http://a,http://b", "attn.threads": 3, "model": "ü x"}, {}
    )
    assert load_config(write(tmp_path, dump_config(config)), {}, {}) == config


def test_option_environment_takes_options_alone() -> None:
    environ = {"TRIMARAN_MODEL": "x", "TRIMARAN_PORT": "y", "PATH": "z"}
    assert option_environment(environ) == {"TRIMARAN_MODEL": "x"}


def test_every_option_is_described_and_accepts_its_default() -> None:
    assert all(option.description for option in options().values())
    overrides = {path: option.default for path, option in options().items()}
    assert load_config(None, overrides, {}) == Config()


@given(st.sampled_from(sorted(options())), st.data())
def test_one_dropped_letter_is_still_guessed(path: str, data: st.DataObject) -> None:
    leaf = path.rpartition(".")[2]
    drop = data.draw(st.integers(0, len(leaf) - 1))
    misspelt = path[: len(path) - len(leaf)] + leaf[:drop] + leaf[drop + 1 :]
    assert nearest(misspelt, options()) is not None


@given(st.text())
def test_no_text_crashes_the_loader(text: str) -> None:
    path = Path("/proc/self/nonexistent")
    assert "No such" in message(path, {}, {})
    for option in options().values():
        with contextlib.suppress(ConfigError):
            load_config(None, {option.path: text}, {})


@pytest.mark.parametrize("value", ["inf", "nan", "1e9", "0", "-1"])
@pytest.mark.parametrize(
    "name", ["gateway.request_timeout_s", "experts.connect_timeout_s", "experts.call_timeout_s"]
)
def test_every_wait_is_bounded(name: str, value: str) -> None:
    text = message(None, {name: value}, {})
    assert name in text
    assert "number above 0, at most 86400" in text


def test_a_key_in_place_of_its_digest_is_refused_and_not_shown() -> None:
    """Nobody could get in with it, and it must not end in a log."""
    text = message(None, {"gateway.api_keys": "sesame"}, {})
    assert text.startswith(
        "gateway.api_keys cannot be what was given (SHA-256 hex digests of the accepted keys"
    )
    assert "sesame" not in text
    digest = "0a" * 32
    assert load_config(None, {"gateway.api_keys": digest}, {}).gateway.api_keys == (digest,)
