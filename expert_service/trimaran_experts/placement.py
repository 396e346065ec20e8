"""Which experts and which CPUs a shard takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimaran.config import ExpertsConfig
from trimaran.errors import ConfigError

WHOLE_MODEL = "0"
"""Shard name of a service that owns all experts."""


@dataclass(frozen=True)
class Placement:
    """One shard's part of the work.

    Attributes:
        shard: its name, which its endpoint carries.
        first_expert, n_experts: the ids that it owns, in every MoE layer.
        cpus: where its threads run, one each.
    """

    shard: str
    first_expert: int
    n_experts: int
    cpus: tuple[int, ...]

    @property
    def experts(self) -> tuple[int, int]:
        """The half-open range of expert ids."""
        return self.first_expert, self.first_expert + self.n_experts


def place(config: ExpertsConfig, n_experts: int, cpus: Sequence[int]) -> Placement:
    """The placement that `config` asks for.

    Args:
        n_experts: experts in each MoE layer of the model.
        cpus: the CPUs to compute on, `config.threads` of them at most.

    Raises:
        ConfigError: a range of experts that the model does not have.
    """
    if config.experts == "all":
        return Placement(WHOLE_MODEL, 0, n_experts, tuple(cpus))
    first, last = (int(text) for text in config.experts.split("-"))
    if not first <= last < n_experts:
        raise ConfigError(
            f"experts.experts is {config.experts}, but the model's experts are 0-{n_experts - 1}",
            remedy="write first-last, both included",
        )
    return Placement(config.experts, first, last - first + 1, tuple(cpus))
