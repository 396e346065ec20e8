from __future__ import annotations

import logging
from pathlib import Path

import pytest
from trimaran_attn.gpu_experts.heat import REMEMBERED, Heat, heat_path, load_heat


def test_counters_that_grow_are_added_up() -> None:
    heat = Heat(3, {1: [5, 0, 0]})
    heat.observe("a", {1: [1, 2, 3]})
    heat.observe("a", {1: [2, 2, 4], 2: [0, 1, 0]})
    assert heat.counts == {1: [7, 2, 4], 2: [0, 1, 0]}


def test_a_service_that_began_anew_is_counted_from_zero() -> None:
    heat = Heat(2)
    heat.observe("a", {1: [10, 20]})
    heat.observe("a", {1: [1, 2]})
    heat.observe("a", {1: [2, 2]})
    assert heat.counts == {1: [12, 22]}


def test_a_service_that_began_anew_does_not_count_others_twice() -> None:
    heat = Heat(2)
    heat.observe("here", {1: [100, 0]})
    heat.observe("there", {1: [10, 20]})
    heat.observe("there", {1: [0, 1]})
    heat.observe("here", {1: [101, 0]})
    assert heat.counts == {1: [111, 21]}


def test_news_is_what_grew() -> None:
    heat = Heat(2)
    assert not heat.observe("a", {1: [0, 0]})
    assert heat.observe("a", {1: [0, 1]})
    assert not heat.observe("a", {1: [0, 1]})
    assert not heat.observe("a", {})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "heat.json"
    Heat(2, {1: [3, 4], 7: [0, 9]}).save(path, "print")
    assert load_heat(path, "print", 2).counts == {1: [3, 4], 7: [0, 9]}
    assert list(path.parent.iterdir()) == [path]


def test_long_memories_fade(tmp_path: Path) -> None:
    path = tmp_path / "heat.json"
    Heat(2, {1: [30 * REMEMBERED, 10 * REMEMBERED]}).save(path, "print")
    assert load_heat(path, "print", 2).counts == {1: [REMEMBERED * 3 // 4, REMEMBERED // 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff\xfe",
        b'{"version":2,"fingerprint":"print","layers":{}}',
        b'{"version":1,"fingerprint":"other","layers":{"1":[1,2]}}',
        b'{"version":1,"fingerprint":"print","layers":{"1":[1,2,3]}}',
        b'{"version":1,"fingerprint":"print","layers":{"1":[1,-2]}}',
        b'{"version":1,"fingerprint":"print","layers":{"1":[1,null]}}',
        b'{"version":1,"fingerprint":"print","layers":{"x":[1,2]}}',
    ],
)
def test_what_makes_no_sense_is_ignored_with_a_word(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "heat.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_heat(path, "print", 2).counts == {}
    assert "begins anew" in caplog.text


def test_no_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_heat(tmp_path / "none.json", "print", 2).counts == {}
    assert not caplog.text


def test_a_place_that_cannot_be_written_is_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        Heat(2).save(tmp_path / "file" / "heat.json", "print")
    assert "not kept" in caplog.text


def test_each_service_of_each_model_has_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    paths = {heat_path(None, model, replica) for model in ("one", "two") for replica in range(3)}
    assert len(paths) == 6
    assert {path.parent for path in paths} == {Path("/cache/trimaran")}
    assert heat_path("/data/heat.json", "one", 0) == Path("/data/heat.json")
    assert heat_path("/data/heat.json", "one", 2) == Path("/data/heat-2.json")
