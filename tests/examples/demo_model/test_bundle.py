from importlib.resources import files
from pathlib import Path

import pytest
from gguf import GGUFReader
from trimaran_demo.evaluate import missed, write_held_out
from trimaran_demo.export import read_gguf
from trimaran_demo.model import ModelConfig
from trimaran_demo.tasks import held_out
from trimaran_demo.template import CHAT_TEMPLATE

BUNDLED = Path(str(files("trimaran") / "data" / "demo.gguf"))
MEGABYTE = 1 << 20


def test_the_bundled_file_is_small_enough_to_ship() -> None:
    assert BUNDLED.stat().st_size < 25 * MEGABYTE


def test_the_bundled_file_is_what_these_scripts_describe() -> None:
    config = read_gguf(BUNDLED).config
    assert config == ModelConfig(rms_norm_eps=config.rms_norm_eps)
    assert config.rms_norm_eps == pytest.approx(1e-6)
    template = GGUFReader(BUNDLED).get_field("tokenizer.chat_template")
    assert template is not None
    assert template.contents() == CHAT_TEMPLATE


def test_the_held_out_file_is_the_one_the_scripts_write(tmp_path: Path) -> None:
    write_held_out(tmp_path / "held_out.jsonl", held_out())
    kept = Path(__file__).parents[2] / "data" / "demo_held_out.jsonl"
    assert (tmp_path / "held_out.jsonl").read_text("utf-8") == kept.read_text("utf-8")


def test_a_model_that_learnt_too_little_is_told_by_its_scores() -> None:
    assert missed({"arithmetic": 0.95, "passkey": 0.9, "sort": 0.0}) == ""
    assert missed({"arithmetic": 0.955, "passkey": 0.5}) == "passkey is 50% right, not 90%"
    assert missed({}).startswith("arithmetic is 0% right")
