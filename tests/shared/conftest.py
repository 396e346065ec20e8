"""Small random models, written once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from trimaran.synth import ShapeName, write_random_model

ModelMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """`random_model(shape, **options)` → path, made on the first call with these options."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(shape: ShapeName, **options: object) -> Path:
        key = f"{shape} {sorted(options.items())}"
        if key not in made:
            made[key] = write_random_model(folder / f"{len(made)}.gguf", shape, **options)
        return made[key]

    return make
