"""Real expert services on small random models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from trimaran.config import ExpertsConfig
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.run_dir import open_run_dir
from trimaran.spec import ModelSpec, read_spec
from trimaran.synth import write_random_model
from trimaran_attn.experts_client import ExpertsClient, ModelFacts
from trimaran_experts.loader import ExpertLayer, find_experts
from trimaran_experts.placement import Placement, place
from trimaran_experts.self_check import reference
from trimaran_kernels import usable_cpus

Notifier = Literal["doorbell", "zmq", "tcp"]


def whole_model(spec: ModelSpec) -> Placement:
    """A service that owns all experts, on one CPU."""
    return place(ExpertsConfig(), spec.moe.n_experts, spec.moe.intermediate_size, usable_cpus(1))


@dataclass(frozen=True)
class Model:
    """A model file and what a client says about it."""

    path: Path
    spec: ModelSpec
    facts: ModelFacts
    layers: list[ExpertLayer]

    @classmethod
    def open(cls, path: Path) -> Model:
        file = GGUFFile.open(path)
        spec = read_spec(file)
        moe_layers = tuple(range(spec.n_dense_layers, spec.n_layers))
        facts = ModelFacts(
            fingerprint(file), spec.hidden_size, spec.moe.top_k, spec.moe.n_experts, moe_layers
        )
        placement = whole_model(spec)
        return cls(path, spec, facts, find_experts(file, spec, placement))

    def batch(self, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, ids, weights of `n` random tokens."""
        random = np.random.default_rng(seed)
        shape = (n, self.facts.top_k)
        x = random.standard_normal((n, self.facts.hidden_size)).astype(np.float32)
        return (
            x,
            random.integers(0, self.facts.n_experts, shape).astype(np.int32),
            random.random(shape, np.float32),
        )

    def expected(self, layer: int, x: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The same layer in float64."""
        (found,) = (one for one in self.layers if one.layer == layer)
        return reference(found, x, ids, weights)


@dataclass
class ExpertProcess:
    """`python -m trimaran_experts` with options."""

    model: Path
    run_dir: Path
    options: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        settings = {
            "model": self.model,
            "run_dir": self.run_dir,
            "log_format": "json",
            "precision": "exact",  # so that answers can be compared closely
            "experts.threads": 1,
        }
        arguments = [f"--set={name}={value}" for name, value in {**settings, **self.options}.items()]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trimaran_experts", *arguments], stderr=log, stdout=log
            )

    def records(self, message: str) -> list[dict[str, Any]]:
        """The log records with this message so far."""
        lines = self.log.read_text().splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [record for record in records if record["message"] == message]

    def wait_for(self, message: str, timeout_s: float = 20) -> dict[str, Any]:
        """The first such record."""
        wait_until(lambda: bool(self.records(message)), timeout_s, self.log.read_text)
        return self.records(message)[0]

    def freeze(self) -> None:
        """Stop it, and wait until all its threads have stopped."""
        self.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: all(" T " in text for text in self._thread_states()))

    def _thread_states(self) -> list[str]:
        return [task.read_text() for task in Path(f"/proc/{self.process.pid}/task").glob("*/stat")]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


def wait_until(
    condition: Callable[[], bool], timeout_s: float = 10, explain: Callable[[], str] = lambda: ""
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return Model.open(write_random_model(path, "v3", mix="Q8_0", tokenizer=False))


@pytest.fixture(scope="session")
def other_model(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same model but for the weights of one layer's experts."""
    path = tmp_path_factory.mktemp("other") / "model.gguf"
    data = np.fromfile(model.path, np.uint8)
    changed = model.layers[0].gate
    data[changed.offset : changed.offset + changed.raw.size] ^= 1
    data.tofile(path)
    return Model.open(path)


@contextlib.contextmanager
def tmpfs_run_dir() -> Iterator[Path]:
    """A fresh run directory on a tmpfs, so that arenas lie in it, apart from those of other servers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", "/dev/shm")
        opened = open_run_dir()
    with opened:
        yield opened.path


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tmpfs_run_dir() as path:
        yield path


StartExperts = Callable[..., ExpertProcess]


@pytest.fixture
def start_experts(model: Model, run_dir: Path, tmp_path: Path) -> Iterator[StartExperts]:
    """Starts a service on the model: `start_experts(path=…, **{"experts.isa": "generic"})`."""
    processes: list[ExpertProcess] = []

    def start(path: Path | None = None, **options: str) -> ExpertProcess:
        log = tmp_path / f"experts-{len(processes)}.log"
        processes.append(ExpertProcess(path or model.path, run_dir, options, log))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


@pytest.fixture(scope="session")
def shared_dir(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run directory of a service that tests share which do it no harm."""
    with open_run_dir() as run_dir:
        service = ExpertProcess(
            model.path, run_dir.path, {}, tmp_path_factory.mktemp("shared") / "experts.log"
        )
        service.wait_for("ready")
        yield run_dir.path
        assert service.process.poll() is None, "a test killed the shared service"
        assert service.stop() == 0


@pytest.fixture
def make_client(model: Model, run_dir: Path) -> Iterator[Callable[..., ExpertsClient]]:
    """Makes clients, not yet connected: `make_client(notifier="zmq", max_tokens=3)`."""
    with contextlib.ExitStack() as stack:

        def make(
            *,
            facts: ModelFacts | None = None,
            at: Path = run_dir,
            max_tokens: int = 8,
            n_slots: int = 4,
            device_slots: int = 0,
            **options: Any,
        ) -> ExpertsClient:
            config = ExpertsConfig(**{"connect_timeout_s": 20.0, "call_timeout_s": 10.0, **options})
            client = ExpertsClient(
                config,
                facts or model.facts,
                at,
                max_tokens=max_tokens,
                n_slots=n_slots,
                device_slots=device_slots,
            )
            return stack.enter_context(client)

        yield make


@pytest.fixture
def arenas(run_dir: Path) -> Callable[[], set[Path]]:
    """Tells which arena files exist now."""
    return lambda: set(run_dir.glob("trimaran-arena-*"))


@pytest.fixture(name="wait_until")
def provide_wait_until() -> Callable[..., None]:
    """`wait_until(condition, timeout_s)`."""
    return wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """On a tmpfs, private."""
    directory = Path("/dev/shm") / f"trimaran-test-{os.getpid()}-{tmp_path.name}"
    directory.mkdir(mode=0o700)
    yield directory
    for entry in directory.iterdir():
        entry.unlink()
    directory.rmdir()


@pytest.fixture
def q8(model, tmp_path: Path) -> Path:
    """A copy, for some tests touch it. All its experts are Q8_0."""
    return Path(shutil.copyfile(model.path, tmp_path / "q8.gguf"))
