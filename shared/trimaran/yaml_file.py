"""Reads a small YAML file into nodes, which know their lines; a failure is one line that names the file."""

from __future__ import annotations

from pathlib import Path

import yaml

from trimaran.errors import ConfigError

MAX_BYTES = 1 << 20


def compose(path: Path, *, what: str, remedy: str) -> yaml.Node | None:
    """The file's root node; None if it is empty.

    Args:
        path: the file.
        what: it should be, e.g. "configuration file".
        remedy: for a file that cannot be opened.

    Raises:
        ConfigError: it cannot be read, is too large, or is not YAML.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy=remedy) from error
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, so it is no {what}")
    try:
        return yaml.compose(text.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error


def construct(node: yaml.Node) -> object:
    """The plain value of a node, as `yaml.safe_load` makes it.

    Raises:
        yaml.YAMLError: there is none, e.g. for a tag that is not YAML's own.
    """
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except ValueError as error:  # e.g. a date that there is not
        raise yaml.constructor.ConstructorError(problem=str(error), problem_mark=node.start_mark) from error
    finally:
        loader.dispose()
