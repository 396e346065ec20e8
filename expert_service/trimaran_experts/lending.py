"""What a client of the same host is told about the weights, so that it may compute from them itself."""

from __future__ import annotations

from trimaran.wire import LentMatrix, LentWeights

from trimaran_experts.engine import ShardEngine
from trimaran_experts.store.segment import Segment
from trimaran_experts.weights import Stored, StoredLayer


def lend(engine: ShardEngine) -> LentWeights | None:
    """The weights' file and what lies where in it; None if they lie in none."""
    segment = engine.weights.segment
    if segment is None:
        return None
    device, inode = segment.file_id
    return LentWeights(
        path=str(segment.path),
        device=device,
        inode=inode,
        layers={stored.layer: _layer(stored, segment) for stored in engine.weights.layers},
        cpus=engine.cpus,
    )


def _layer(stored: StoredLayer, segment: Segment) -> tuple[LentMatrix, LentMatrix, LentMatrix]:
    return _matrix(stored.gate, segment), _matrix(stored.up, segment), _matrix(stored.down, segment)


def _matrix(stored: Stored, segment: Segment) -> LentMatrix:
    offset = segment.offset + stored.data.ctypes.data - segment.data.ctypes.data
    return LentMatrix(stored.type, offset, stored.data.size, stored.packed)
