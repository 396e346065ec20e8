"""Prints what an extra of pyproject.toml needs, one requirement a line: `requirements.py dev`.

pip can install a project's dependencies only together with the project, whose kernels take a compiler and
minutes to build. The Makefile installs them first, in a step that only pyproject.toml and constraints.txt can
outdate. `build` stands for the build system's own requirements.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def requirements(project: dict[str, Any], extra: str) -> Iterator[str]:
    """The requirements of one extra, with extras of the project itself resolved."""
    for requirement in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[([\w,-]+)\]", requirement)
        if own is None:
            yield requirement
            continue
        for name in own[1].split(","):
            yield from requirements(project, name)


def main(extra: str) -> None:
    """Prints the base dependencies and those of `extra`, or the build system's."""
    pyproject = tomllib.loads(PYPROJECT.read_text())
    if extra == "build":
        lines = [*pyproject["build-system"]["requires"], "cmake>=3.20", "ninja"]
    else:
        project = pyproject["project"]
        lines = [*project["dependencies"], *requirements(project, extra)]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
