from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import RunningServer, running_server
from trimaran.synth import write_random_model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("e2e")


@pytest.fixture(scope="session")
def demo_model() -> str:
    """The bundled model; TRIMARAN_MODEL names another one that can answer the same questions."""
    return os.environ.get("TRIMARAN_MODEL", "demo")


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V3-shaped model of random weights in the types of Q4_K_M, which loads in a moment."""
    return write_random_model(tmp_path_factory.mktemp("model") / "random.gguf", "v3", mix="Q4_K_M")


@pytest.fixture(scope="module")
def demo_server(demo_model: str) -> Iterator[RunningServer]:
    with running_server("--model", demo_model, "--device", "cpu") as server:
        yield server


@pytest.fixture(scope="module")
def random_server(random_model: Path) -> Iterator[RunningServer]:
    with running_server("--model", str(random_model), "--device", "cpu", "--no-greeting") as server:
        yield server
