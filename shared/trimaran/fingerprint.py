"""A short text that tells whether two processes loaded the same model, and if not, in what it differs.

It covers the dimensions, every tensor's name, type and shape, and a few bytes of every tensor of routed
experts: cheap even for a model of 400 GB, and independent of how the model is split in files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from trimaran.gguf.file import GGUFFile
from trimaran.spec import ModelSpec, read_spec

SAMPLES = 2
SAMPLE_BYTES = 256

_PARTS = ("dimensions", "tensor names, types or shapes", "expert weights")


def fingerprint(file: GGUFFile, spec: ModelSpec | None = None) -> str:
    """Three hashes joined by dots: of the dimensions, the tensor directory and sampled expert weights.

    `spec` saves reading it again. Raises ModelFileError like `read_spec`.
    """
    dimensions = asdict(spec or read_spec(file))
    del dimensions["name"]
    tensors = sorted((info.name, info.type.name, info.shape) for info in file.tensors.values())
    return ".".join((_hash(json.dumps(dimensions)), _hash(json.dumps(tensors)), _hash(_samples(file))))


def explain_mismatch(ours: str, theirs: str) -> str:
    """What two fingerprints say differs, e.g. "other expert weights"; empty if they are equal."""
    if ours == theirs:
        return ""
    pairs = list(zip(ours.split("."), theirs.split("."), strict=False))
    if len(pairs) != len(_PARTS):
        return "a fingerprint of another kind"
    return " and ".join(f"other {what}" for what, (a, b) in zip(_PARTS, pairs, strict=True) if a != b)


def _samples(file: GGUFFile) -> bytes:
    parts = []
    for name in sorted(name for name in file.tensors if "_exps." in name):
        nbytes = file.tensors[name].nbytes
        places = (nbytes * (2 * sample + 1) // (2 * SAMPLES) for sample in range(SAMPLES))
        parts += [file.peek(name, place, SAMPLE_BYTES) for place in places]
    return b"".join(parts)


def _hash(data: str | bytes) -> str:
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.blake2b(raw, digest_size=8).hexdigest()
