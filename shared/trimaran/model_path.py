"""Where the model file is that the configuration names."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from trimaran.errors import ModelFileError

DEMO = "demo"
_FIRST_SPLIT = "-00001-of-"


def resolve_model(model: str) -> Path:
    """The absolute path of the GGUF file that `model` names.

    Args:
        model: a file, the first of split files, a folder that holds one model, or `demo`.

    Raises:
        ModelFileError: there is no such file, or the folder holds none or several models.
    """
    if model == DEMO:
        return _demo_path()
    if not model:
        raise ModelFileError("the model's name is empty", remedy="give a GGUF file or `demo` with --model")
    path = _expand(model)
    if path.is_dir():
        return _only_model_in(path)
    if not path.exists():
        raise ModelFileError(f"{model}: no such file", remedy="check --model; `demo` is the bundled model")
    if not path.is_file():
        raise ModelFileError(f"{model}: not a regular file")
    return path.resolve()


def _expand(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError as error:  # no such user, or no home directory
        raise ModelFileError(f"{model}: {error}", remedy="give the path without ~") from error


def _demo_path() -> Path:
    path = Path(str(resources.files("trimaran") / "data" / "demo.gguf"))
    if not path.is_file():
        raise ModelFileError(
            "the bundled demo model is not in this installation",
            remedy="build it with `make demo-model`, or give a GGUF file with --model",
        )
    return path


def _only_model_in(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    models = [file for file in files if _FIRST_SPLIT in file.name] or files
    if len(models) == 1:
        return models[0].resolve()
    names = [file.name for file in models[:3]] + ["…"] * (len(models) > 3)
    found = f"{len(models)} models, {', '.join(names)}" if models else "no GGUF file"
    raise ModelFileError(f"{folder}: the folder holds {found}", remedy="give the file itself with --model")
