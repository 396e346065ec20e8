"""The sections of gpu-check, in the order in which they run: what is worth most first, as time may run out.

To add one: write its function, and a line here.

A section is a function of a `Bench` in a file of its own, or beside related ones. Only the worker imports it,
and when its turn comes: what fails in one, be it the import, does not touch the others.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """One part of the run.

    Attributes:
        name: for `--sections` and the log.
        function: "module:function", relative to this folder.
        seconds: a hard limit, about twice what compiling and running should take: then the worker is killed,
            and the next section starts in a new one.
        interpreted: whether it also runs, tiny, in Triton's interpreter without a GPU.
    """

    name: str
    function: str
    seconds: float
    interpreted: bool = False


SECTIONS = (
    Section("ceilings", "_gpu_speed:measure_ceilings", 20),
    Section("one token", "_gpu_checks:check_one_token", 45, interpreted=True),
    Section("speed of one token", "_gpu_speed:measure_one_token", 50),
    Section("decode attention", "_gpu_checks:check_decode_attention", 35, interpreted=True),
    Section("speed of decode attention", "_gpu_speed:measure_decode_attention", 45),
    Section("hop", "_gpu_hop:check_hop", 30, interpreted=True),
    Section("speed of hop", "_gpu_hop:measure_hop", 20),
    Section("model", "_gpu_model:check_models", 60),
    Section("speed of tokens", "_gpu_speed:measure_tokens", 40),
    Section("speed of steps", "_gpu_graphs:measure_graphs", 60),
    Section("tokens", "_gpu_checks:check_tokens", 90, interpreted=True),
    Section("memory", "_gpu_memory:check_memory", 90),
    Section("sampling", "_gpu_sampling:check_sampling", 20, interpreted=True),
    Section("speed of sampling", "_gpu_sampling:measure_sampling", 15),
    Section("experts", "_gpu_experts:check_experts", 60, interpreted=True),
    Section("speed of experts", "_gpu_experts:measure_experts", 40),
    Section("small", "_gpu_small:check_small", 30, interpreted=True),
    Section("speed of small", "_gpu_small:measure_small", 15),
    Section("prefill attention", "_gpu_checks:check_prefill_attention", 20, interpreted=True),
)

TOTAL_SECONDS = 560.0
"""Then the run is over, wherever it is: below ten minutes, though all limits add up to more."""
