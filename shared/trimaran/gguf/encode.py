"""Metadata values as the bytes of the format."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimaran.gguf.types import SCALAR_DTYPES, ValueType

_TYPES = {np.dtype(dtype): kind for kind, dtype in SCALAR_DTYPES.items()}

Scalar = int | float | bool | str | np.generic
Writable = Scalar | Sequence[Scalar] | NDArray[Any]
"""What may be written as a metadata value.

A numpy scalar or array keeps its type. Plain integers become UINT32, INT32, UINT64 or INT64, the first that
holds them (in a sequence INT32 or INT64), floats FLOAT32.
"""


def encode_string(text: str) -> bytes:
    """A length and UTF-8 bytes."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def encode_value(value: Writable) -> bytes:
    """A type number and the value.

    Raises:
        TypeError: the format cannot hold such a value.
        OverflowError: an integer needs more than 64 bits.
    """
    if isinstance(value, str):
        return struct.pack("<I", ValueType.STRING) + encode_string(value)
    if isinstance(value, Sequence | np.ndarray):
        return struct.pack("<I", ValueType.ARRAY) + _encode_array(value)
    scalar = _as_numpy(value)
    return struct.pack("<I", _value_type(scalar.dtype)) + scalar.tobytes()


def _encode_array(values: Sequence[Scalar] | NDArray[Any]) -> bytes:
    if not isinstance(values, np.ndarray) and all(isinstance(item, str) for item in values):
        texts = b"".join(encode_string(str(item)) for item in values)
        return struct.pack("<IQ", ValueType.STRING, len(values)) + texts
    array = values if isinstance(values, np.ndarray) else _sequence_array(values)
    return struct.pack("<IQ", _value_type(array.dtype), array.size) + array.tobytes()


def _sequence_array(values: Sequence[Scalar]) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype == np.float64:
        return array.astype(np.float32)
    if array.dtype == np.int64 and array.size and -(1 << 31) <= array.min() <= array.max() < 1 << 31:
        return array.astype(np.int32)
    return array


def _as_numpy(value: Scalar) -> np.generic:
    if isinstance(value, np.generic):
        return value
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, float):
        return np.float32(value)
    if not isinstance(value, int):
        raise TypeError(f"a {type(value).__name__} is no GGUF value")
    for kind in (np.uint32, np.int32, np.uint64):
        limits = np.iinfo(kind)
        if limits.min <= value <= limits.max:
            return kind(value)
    return np.int64(value)


def _value_type(dtype: np.dtype[Any]) -> ValueType:
    try:
        return _TYPES[dtype]
    except KeyError:
        raise TypeError(f"values of type {dtype} are no GGUF values") from None
