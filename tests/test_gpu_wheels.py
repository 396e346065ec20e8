"""What `make gpu-check` imports, and what a machine without registries is brought for it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / name for name in ("benchmarks", "shared", "kernels", "attn_service")]
"""Where gpu-check finds modules; `tools/gpu_check.sh` names the packages' ones in PYTHONPATH."""

THERE = {"torch", "triton", "numpy", "rich", "yaml"}
"""What a machine with a GPU has."""

DISTRIBUTIONS = {"zmq": "pyzmq", "yaml": "pyyaml"}
SCRIPT = (ROOT / "tools" / "gpu_check.sh").read_text()


def source(module: str) -> Path | None:
    """Of a module of ours."""
    for folder in FOLDERS:
        path = folder.joinpath(*module.split("."))
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, wherever it does; what may be a module of a package too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_packages() -> set[str]:
    """All that gpu-check's modules, and those of ours that they import, take from elsewhere."""
    waiting = ["gpu_check", *(path.stem for path in (ROOT / "benchmarks").glob("_gpu_*.py"))]
    seen: set[str] = set()
    others: set[str] = set()
    while waiting:
        module = waiting.pop()
        parents = {module[: dot.start()] for dot in re.finditer(r"\.", module)}
        for name in {module, *parents} - seen:
            seen.add(name)
            path = source(name)
            if path is not None:
                waiting += imports(path)
            elif "." not in name and name not in sys.stdlib_module_names:
                others.add(name)
    return others


def carried() -> set[str]:
    """Distributions that `tools/gpu_wheels.sh` packs."""
    download = (ROOT / "tools" / "gpu_wheels.sh").read_text().replace("\\\n", " ")
    (names,) = re.findall(r"--dest build/gpu-wheels (.*)", download)
    return set(names.split())


def distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module)


def test_everything_imported_is_there_or_carried():
    needed = imported_packages()
    assert needed >= THERE
    assert {distribution(module) for module in needed - THERE} == carried()


def test_the_script_asks_for_what_is_imported():
    (names,) = re.findall(r'"\$python" - (.*) <<', SCRIPT)
    assert set(names.split()) == imported_packages() - {"triton"}  # comes with torch where there is a GPU
    (folders,) = re.findall(r"^export PYTHONPATH=\$site:(.*)$", SCRIPT, re.MULTILINE)
    assert {ROOT / folder.removeprefix("$PWD/") for folder in folders.split(":")} == set(FOLDERS[1:])


def test_carried_packages_are_ours_and_need_no_others():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [*project["dependencies"], *project["optional-dependencies"]["attn"]]
    declared = {re.split(r"[^\w-]", requirement, maxsplit=1)[0] for requirement in ours}
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert carried() <= declared
    assert carried() <= pinned
    for name in carried():
        wanted = [need for need in metadata.requires(name) or () if not re.search(r"extra\s*==|cffi", need)]
        assert not wanted, f"{name} needs {wanted}, which nobody carries"


@pytest.mark.parametrize("has_modules", [True, False])
def test_a_machine_that_lacks_something_is_told_so_first(tmp_path, has_modules):
    """With a Python that finds no packages but those of a folder."""
    tool = tmp_path / "tools" / "gpu_check.sh"
    tool.parent.mkdir()
    shutil.copy(ROOT / "tools" / "gpu_check.sh", tool)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_check.py").write_text(
        "import os; print('ran', os.environ['TRIMARAN_ISA'])"
    )
    for name in [*imported_packages(), "trimaran_kernels"] if has_modules else ["torch"]:
        (tmp_path / "shared" / name).mkdir(parents=True)
        (tmp_path / "shared" / name / "__init__.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "GPU_PYTHON": str(python)}
    result = subprocess.run(
        ["bash", str(tool)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    if has_modules:
        assert (result.returncode, result.stdout) == (0, "ran avx2\n"), result.stderr
    else:
        assert result.returncode == 1
        assert "does not find: numpy rich yaml msgspec zmq llguidance;" in result.stderr
