"""Native CPU kernels: quantised linear layers and routed experts, computed from the model file's own bits."""

from __future__ import annotations

from trimaran_kernels._native import (
    AttentionLayer,
    ExpertEngine,
    Gate,
    GateRule,
    LatentMaps,
    LatentPages,
    Linear,
    Mla,
    ThreadPool,
    built_isas,
    cpu_features,
    dequantize,
    detect_isa,
    explain_isa,
    linear,
    pack,
    packed_bytes,
    read_memory,
    rms_norm,
    route_tokens,
    store_latents,
    supported_types,
)
from trimaran_kernels.memory import HugePages, aligned_bytes
from trimaran_kernels.topology import usable_cpus

__all__ = [
    "AttentionLayer",
    "ExpertEngine",
    "Gate",
    "GateRule",
    "HugePages",
    "LatentMaps",
    "LatentPages",
    "Linear",
    "Mla",
    "ThreadPool",
    "aligned_bytes",
    "built_isas",
    "cpu_features",
    "dequantize",
    "detect_isa",
    "explain_isa",
    "linear",
    "pack",
    "packed_bytes",
    "read_memory",
    "rms_norm",
    "route_tokens",
    "store_latents",
    "supported_types",
    "usable_cpus",
]
