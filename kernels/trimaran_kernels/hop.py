"""The native side of the hop to the experts: arenas, the doorbell, and the loop that serves them."""

from __future__ import annotations

from trimaran_kernels._native import (
    ArenaWorker,
    CallGate,
    HopArena,
    HopCall,
    HopLine,
    Recorder,
    arena_layout,
)

__all__ = ["ArenaWorker", "CallGate", "HopArena", "HopCall", "HopLine", "Recorder", "arena_layout"]
