"""Reading what was written, by us and by the independent `gguf` package; split models; clear errors."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from trimaran.errors import ModelFileError
from trimaran.gguf import GGMLType, GGUFFile, TensorData, write_gguf, write_split_gguf

METADATA = {
    "general.architecture": "deepseek2",
    "a.integer": 7,
    "a.negative": -7,
    "a.long": np.uint64(1 << 63),
    "a.byte": np.uint8(200),
    "a.float": 0.5,
    "a.double": np.float64(0.1),
    "a.flag": True,
    "a.texts": ["ab", "", "ü｜▁"],
    "a.integers": [1, -2, 3],
    "a.floats": np.array([0.25, 1.5], np.float32),
    "a.flags": np.array([True, False]),
}


def tensor(name: str, *shape: int, kind: GGMLType = GGMLType.F32, seed: int = 0) -> TensorData:
    size = int(np.prod(shape[:-1])) * kind.row_bytes(shape[-1])
    return TensorData(name, kind, shape, np.random.default_rng(seed).integers(0, 256, size, np.uint8))


TENSORS = [
    tensor("matrix", 3, 5),
    tensor("vector", 7, kind=GGMLType.F16),
    tensor("experts", 4, 2, 256, kind=GGMLType.Q4_K),
    tensor("blocks", 3, 96, kind=GGMLType.Q5_0),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    write_gguf(path, METADATA, TENSORS)
    return path


def test_round_trip(model: Path) -> None:
    with GGUFFile.open(model) as file:
        assert set(file.metadata) == set(METADATA)
        for key, value in METADATA.items():
            np.testing.assert_array_equal(file.metadata[key], value)
        assert list(file.tensors) == [each.name for each in TENSORS]
        for each in TENSORS:
            info = file.tensors[each.name]
            assert (info.type, info.shape, info.nbytes) == (each.type, each.shape, each.nbytes)
            np.testing.assert_array_equal(file.raw(each.name), each.data)
        assert file.nbytes == sum(each.nbytes for each in TENSORS)
        assert file.paths == (model,)


def test_tensors_are_views_that_outlive_the_file(model: Path) -> None:
    with GGUFFile.open(model) as file:
        view = file.raw("matrix")
    assert not view.flags.owndata
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, TENSORS[0].data)


def test_a_tensor_that_is_not_there_is_named(model: Path) -> None:
    with pytest.raises(ModelFileError, match="'nothing' is missing"):
        GGUFFile.open(model).raw("nothing")


def test_peek(model: Path) -> None:
    file = GGUFFile.open(model)
    data = file.raw("blocks").tobytes()
    assert file.peek("blocks", 3, 5) == data[3:8]
    assert file.peek("blocks", len(data) - 2, 5) == data[-2:]
    assert file.peek("blocks", len(data) + 2, 5) == b""
    model.unlink()
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        file.peek("blocks", 0, 1)


def test_the_gguf_package_reads_what_we_write(model: Path) -> None:
    reader = gguf.GGUFReader(model)
    for key, value in METADATA.items():
        np.testing.assert_array_equal(reader.fields[key].contents(), value)
    for ours, theirs in zip(TENSORS, reader.tensors, strict=True):
        assert (ours.name, ours.shape[::-1]) == (theirs.name, tuple(theirs.shape))
        np.testing.assert_array_equal(theirs.data.view(np.uint8).ravel(), ours.data)


def test_we_read_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "theirs.gguf"
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    writer.add_tensor("matrix", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile.open(path)
    assert file.metadata.integer("deepseek2.block_count") == 3
    assert file.metadata.texts("tokenizer.ggml.tokens") == ["a", "b"]
    np.testing.assert_array_equal(file.raw("matrix").view(np.float32).reshape(3, 4), matrix)


def test_version_2_is_read(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    model.write_bytes(data)
    assert GGUFFile.open(model).metadata.integer("a.integer") == 7


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {"general.alignment": alignment}, TENSORS)
    file = GGUFFile.open(path)
    assert all(info.offset % alignment == 0 for info in file.tensors.values())
    np.testing.assert_array_equal(file.raw("blocks"), TENSORS[3].data)


def test_typed_getters(model: Path) -> None:
    metadata = GGUFFile.open(model).metadata
    assert metadata.integer("a.long") == 1 << 63
    assert metadata.number("a.double") == 0.1
    assert metadata.number("a.integer") == 7.0
    assert metadata.flag("a.flag") is True
    assert metadata.text("a.none", "default") == "default"
    assert metadata.length("a.texts") == 3
    for read, key in (
        (metadata.integer, "a.flag"),
        (metadata.integer, "a.float"),
        (metadata.number, "a.flag"),
        (metadata.text, "a.integer"),
        (metadata.texts, "a.integers"),
        (metadata.array, "a.texts"),
        (metadata.flag, "a.byte"),
        (metadata.length, "a.byte"),
        (metadata.length, "a.none"),
        (metadata.number, "a.none"),
    ):
        with pytest.raises(ModelFileError, match=rf"model\.gguf: metadata '{key}' is "):
            read(key)


def test_split_model_opens_by_any_part(tmp_path: Path) -> None:
    paths = write_split_gguf(tmp_path, "model", METADATA, TENSORS, 3)
    assert [path.name for path in paths] == [f"model-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for path in paths:
        file = GGUFFile.open(path)
        assert file.path == paths[0]
        assert file.paths == tuple(paths)
        assert file.metadata.integer("a.integer") == 7
        for each in TENSORS:
            np.testing.assert_array_equal(file.raw(each.name), each.data)
    assert file.tensors["blocks"].part == 2


def test_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_split_gguf(tmp_path, "model", METADATA, TENSORS, 3)
    paths[1].unlink()
    with pytest.raises(ModelFileError, match=r"model-00002-of-00003\.gguf: is missing, it is part 2 of 3"):
        GGUFFile.open(paths[2])


def test_part_of_another_place_is_refused(tmp_path: Path) -> None:
    paths = write_split_gguf(tmp_path, "model", METADATA, TENSORS, 3)
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(ModelFileError, match="is part 3 of 3, but is named part 2 of 3"):
        GGUFFile.open(paths[0])


def test_part_of_another_name_is_refused(tmp_path: Path) -> None:
    path = write_split_gguf(tmp_path, "model", METADATA, TENSORS, 2)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match=r"renamed\.gguf: is part of a model of 2 files"):
        GGUFFile.open(path)


def test_tensor_total_of_the_parts_is_checked(tmp_path: Path) -> None:
    paths = write_split_gguf(tmp_path, "model", METADATA, TENSORS, 2)
    write_gguf(paths[1], {"split.no": np.uint16(1), "split.count": np.uint16(2)}, TENSORS[2:3])
    with pytest.raises(ModelFileError, match=r"hold 3 tensors, 'split.tensors.count' says 4"):
        GGUFFile.open(paths[0])


def test_tensor_twice_in_a_split_model(tmp_path: Path) -> None:
    paths = write_split_gguf(tmp_path, "model", METADATA, TENSORS, 2)
    write_gguf(paths[1], {"split.no": np.uint16(1), "split.count": np.uint16(2)}, TENSORS[:2])
    with pytest.raises(ModelFileError, match=r"00002-of-00002\.gguf: tensor 'matrix' appears twice"):
        GGUFFile.open(paths[0])


def test_not_a_model_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.gguf: cannot be opened: No such file"):
        GGUFFile.open(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        GGUFFile.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        GGUFFile.open(tmp_path / "fifo")
    for content in (b"", b"GG", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ModelFileError, match="is not a GGUF file"):
            GGUFFile.open(tmp_path / "other")
    (tmp_path / "pointer").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelFileError, match=r"is not a GGUF file .*git lfs pull"):
        GGUFFile.open(tmp_path / "pointer")


def test_large_vocabulary_opens_fast(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tokens = [f"token·{n}" for n in range(129_280)]
    merges = [f"to ken{n}" for n in range(127_741)]
    types = np.ones(len(tokens), np.int32)
    keys = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")
    write_gguf(path, dict(zip(keys, (tokens, merges, types), strict=True)), [])
    start = time.process_time()
    file = GGUFFile.open(path)
    read = file.metadata.texts(keys[0]), file.metadata.texts(keys[1])
    assert time.process_time() - start < 2.0
    assert read == (tokens, merges)
    np.testing.assert_array_equal(file.metadata.array(keys[2]), types)
