from __future__ import annotations

from pathlib import Path

import pytest
from trimaran.errors import ModelFileError
from trimaran.model_path import resolve_model


def refused(model: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        resolve_model(str(model))
    return str(caught.value)


def test_files_and_folders(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "gone.gguf")
    assert "no GGUF file" in refused(tmp_path)
    for part in (1, 2):
        (tmp_path / f"r1-0000{part}-of-00002.gguf").touch()
    first = tmp_path / "r1-00001-of-00002.gguf"
    assert resolve_model(str(first)) == first
    assert resolve_model(str(tmp_path)) == first
    (tmp_path / "other-00001-of-00002.gguf").touch()
    assert "2 models" in refused(tmp_path)
    assert "not a regular file" in refused(Path("/dev/null"))


def test_a_home_that_nobody_has_is_one_line() -> None:
    with pytest.raises(ModelFileError, match=r"~nosuchuser/x\.gguf: "):
        resolve_model("~nosuchuser/x.gguf")
