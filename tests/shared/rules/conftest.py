"""Rules that are written to a file and applied to a small model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from trimaran.config_loader import load_config
from trimaran.gguf import GGUFFile
from trimaran.rules import Chosen, apply_rules
from trimaran.spec import ModelSpec, read_spec
from trimaran.synth import write_random_model

Apply = Callable[..., Chosen]


@pytest.fixture(scope="session")
def v3_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model") / "v3.gguf", "v3", mix="Q8_0", tokenizer=False)


@pytest.fixture(scope="session")
def spec(v3_file: Path) -> ModelSpec:
    with GGUFFile.open(v3_file) as file:
        return replace(read_spec(file), n_layers=4)  # two for each of two GPUs


@pytest.fixture
def apply(spec: ModelSpec, tmp_path: Path) -> Apply:
    """Writes rules (text as it is), and applies them on a machine with so many GPUs."""

    def apply(rules: Any, *, n_gpus: int | None = 0, **options: object) -> Chosen:
        path = tmp_path / "rules.yaml"
        path.write_text(rules if isinstance(rules, str) else yaml.safe_dump(rules))
        options["attn.rules"] = str(path)
        return apply_rules(load_config(None, options, {}), spec, n_gpus)

    return apply
