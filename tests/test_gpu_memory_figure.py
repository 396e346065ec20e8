"""docs/gpu-memory.md shows what the plan says today."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    path = ROOT / "tools/gpu_memory_figure.py"
    spec = importlib.util.spec_from_file_location("gpu_memory_figure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figure_and_table_are_fresh(figure: ModuleType) -> None:
    columns = {
        f"{kind}, {context // 1024}K": figure.parts_of(figure.plan_for(kind, context))
        for kind, context in figure.CASES
    }
    assert figure.FIGURE.read_text() == figure.draw(columns), "run tools/gpu_memory_figure.py"
    assert figure.table(columns) in (ROOT / "docs/gpu-memory.md").read_text(), "run it with --table"


def test_every_planned_byte_is_drawn(figure: ModuleType) -> None:
    plan = figure.plan_for("fp8", 131072)
    assert plan.gpu is not None
    assert sum(nbytes for _, nbytes in figure.parts_of(plan)) == plan.gpu.needed <= plan.gpu.available
