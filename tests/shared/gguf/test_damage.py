"""Damaged files: whatever the bytes say, a one-line ModelFileError or a model that can be read in bounds."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trimaran.errors import ModelFileError
from trimaran.gguf import GGMLType, GGUFFile, TensorData, write_gguf
from trimaran.gguf.encode import encode_string


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "model.gguf"
    metadata = {"text": "abc", "texts": ["a", "bc", ""], "numbers": [1, 2, 3], "flag": True, "float": 1.5}
    tensors = [
        TensorData("one", GGMLType.F32, (2, 3), np.zeros(24, np.uint8)),
        TensorData("two", GGMLType.Q8_0, (2, 2, 32), np.zeros(136, np.uint8)),
    ]
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "model.gguf"


def read_all(path: Path) -> None:
    """Touch everything that a file offers."""
    with GGUFFile.open(path) as file:
        for key in file.metadata:
            assert file.metadata[key] is not None
        for name, info in file.tensors.items():
            assert file.raw(name).nbytes == info.nbytes


def open_or_explain(path: Path) -> None:
    try:
        read_all(path)
    except ModelFileError as error:
        message = str(error)
    else:
        return
    assert message.startswith(str(path))
    assert "\n" not in message


def test_every_truncation(whole: bytes, scratch: Path) -> None:
    data_end = whole.rstrip(b"\0")
    for size in range(len(whole)):
        scratch.write_bytes(whole[:size])
        if size < len(data_end):
            with pytest.raises(ModelFileError):
                read_all(scratch)
        open_or_explain(scratch)


def test_every_byte_flipped(whole: bytes, scratch: Path) -> None:
    for position in range(len(whole)):
        for value in (0x00, 0xFF, whole[position] ^ 0x01, whole[position] ^ 0x80):
            damaged = bytearray(whole)
            damaged[position] = value
            scratch.write_bytes(damaged)
            open_or_explain(scratch)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=9)), min_size=1, max_size=8))
def test_random_damage(whole: bytes, scratch: Path, changes: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(whole)
    for position, data in changes:
        start = position % len(damaged)
        damaged[start : start + len(data)] = data
    scratch.write_bytes(damaged)
    open_or_explain(scratch)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_random_content(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(b"GGUF" + struct.pack("<I", 3) + content)
    open_or_explain(scratch)


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def info(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return encode_string(name) + dims + struct.pack("<IQ", kind, offset)


HUGE = (1 << 64) - 1
ROOM = bytes(4096)

CASES = {
    "version 1": (header(version=1), "version 1 is not supported"),
    "version 4": (header(version=4), "version 4 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "absurd tensor count": (header(tensors=HUGE) + ROOM, "tensor count: 18446744073709551615 is more"),
    "absurd key count": (header(keys=1 << 40) + ROOM, "metadata count: 1099511627776 is more"),
    "absurd key length": (header(keys=1) + struct.pack("<Q", HUGE) + ROOM, "metadata key 0: a name of"),
    "empty key": (header(keys=1) + ROOM, "metadata key 0: a name of 0 bytes"),
    "key not UTF-8": (header(keys=1) + b"\2" + bytes(7) + b"\xff\xff" + ROOM, "not UTF-8"),
    "unknown value type": (
        header(keys=1) + encode_string("k") + struct.pack("<I", 99) + ROOM,
        "metadata 'k': unknown value type 99",
    ),
    "nested array": (
        header(keys=1) + encode_string("k") + struct.pack("<IIQ", 9, 9, 1) + ROOM,
        "metadata 'k': an array of arrays",
    ),
    "absurd array": (
        header(keys=1) + encode_string("k") + struct.pack("<IIQ", 9, 10, 1 << 61) + ROOM,
        "metadata 'k': 2305843009213693952 is more",
    ),
    "absurd string array": (
        header(keys=1) + encode_string("k") + struct.pack("<IIQ", 9, 8, 1 << 50) + ROOM,
        "metadata 'k': 1125899906842624 is more",
    ),
    "absurd string": (
        header(keys=1) + encode_string("k") + struct.pack("<IQ", 8, HUGE) + ROOM,
        "metadata 'k': reaches beyond the end",
    ),
    "key twice": (
        header(keys=2) + (encode_string("k") + struct.pack("<IB", 0, 1)) * 2 + ROOM,
        "metadata 'k': the key appears twice",
    ),
    "alignment 0": (
        header(keys=1) + encode_string("general.alignment") + struct.pack("<II", 4, 0) + ROOM,
        "'general.alignment': 0 is no power of two",
    ),
    "alignment of text": (
        header(keys=1) + encode_string("general.alignment") + struct.pack("<IQ", 8, 0) + ROOM,
        "'general.alignment' is not an integer",
    ),
    "tensor twice": (header(2) + info("t", (1,)) + info("t", (1,), offset=32) + ROOM, "'t' appears twice"),
    "tensors overlap": (
        header(2) + info("t", (9,)) + info("u", (1,), offset=32) + ROOM,
        "'u': overlaps tensor 't'",
    ),
    "no dimension": (header(1) + info("t", ()) + ROOM, "'t': 0 dimensions"),
    "five dimensions": (header(1) + info("t", (1, 1, 1, 1, 1)) + ROOM, "'t': 5 dimensions"),
    "empty tensor": (header(1) + info("t", (4, 0)) + ROOM, r"'t': impossible shape \[0, 4\]"),
    "overflowing shape": (header(1) + info("t", (1 << 32, 1 << 32)) + ROOM, "'t': impossible shape"),
    "unknown type": (
        header(1) + info("t", (32,), kind=77) + ROOM,
        r"'t': type 77 \(unknown\) is not supported",
    ),
    "foreign type": (
        header(1) + info("t", (32,), kind=39) + ROOM,
        r"'t': type 39 \(MXFP4\) is not supported",
    ),
    "half a block": (
        header(1) + info("t", (48,), kind=8) + ROOM,
        "'t': rows of 48 values, but Q8_0 has blocks",
    ),
    "unaligned offset": (header(1) + info("t", (1,), offset=4) + ROOM, "'t': offset 4 is no multiple"),
    "offset outside": (header(1) + info("t", (1,), offset=1 << 63) + ROOM, "'t': lies at bytes 9223372"),
    "line break in a name": (header(1) + info("a\nb", (1,), kind=77) + ROOM, r"'a\\nb': type 77"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_field_at_fault_is_named(tmp_path: Path, case: str) -> None:
    content, message = CASES[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_all(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [(8, b"\1" + bytes(7) + b"\xff", "'k' text 0 is not UTF-8"), (7, b"\2", "'k' holds a boolean")],
)
def test_bad_values_are_found_when_read(tmp_path: Path, kind: int, value: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(keys=1) + encode_string("k") + struct.pack("<I", kind) + value + ROOM)
    metadata = GGUFFile.open(path).metadata
    with pytest.raises(ModelFileError, match=message):
        metadata["k"]
