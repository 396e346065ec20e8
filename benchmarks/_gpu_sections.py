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
        seconds: a hard limit: then the worker is killed and the next section starts in a new one.
        interpreted: whether it also runs, tiny, in Triton's interpreter without a GPU.
    """

    name: str
    function: str
    seconds: float
    interpreted: bool = False


SECTIONS = (
    Section("linear", "_gpu_checks:check_linears", 110, interpreted=True),
    Section("attention", "_gpu_checks:check_attention", 55, interpreted=True),
    Section("hop", "_gpu_hop:check_hop", 30, interpreted=True),
    Section("small", "_gpu_small:check_small", 40, interpreted=True),
    Section("experts", "_gpu_experts:check_experts", 60, interpreted=True),
    Section("ceilings", "_gpu_speed:measure_ceilings", 20),
    Section("speed of linear", "_gpu_speed:measure_linears", 70),
    Section("speed of attention", "_gpu_speed:measure_attention", 45),
    Section("speed of hop", "_gpu_hop:measure_hop", 20),
    Section("speed of steps", "_gpu_graphs:measure_graphs", 50),
    Section("model", "_gpu_model:check_models", 60),
    Section("memory", "_gpu_memory:check_memory", 65),
    Section("speed of experts", "_gpu_experts:measure_experts", 30),
    Section("speed of small", "_gpu_small:measure_small", 15),
)

TOTAL_SECONDS = 560.0
"""Then the run is over, wherever it is: below ten minutes, though all limits add up to a little more."""
