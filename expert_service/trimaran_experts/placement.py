"""Which part of the experts a shard takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimaran.config import ExpertsConfig
from trimaran.errors import ConfigError

WHOLE_MODEL = "0"
"""Shard name of a service that owns all experts."""


@dataclass(frozen=True)
class Placement:
    """One shard's part of the work: some experts, and of each some of its intermediate columns.

    Attributes:
        shard: its name, which its endpoint carries.
        first_expert, n_experts: the ids that it owns, in every MoE layer.
        first_column, n_columns: the rows of gate and up, and the columns of down, that it owns.
        cpus: where its threads run, one each.
    """

    shard: str
    first_expert: int
    n_experts: int
    first_column: int
    n_columns: int
    cpus: tuple[int, ...]

    @property
    def experts(self) -> tuple[int, int]:
        """The half-open range of expert ids."""
        return self.first_expert, self.first_expert + self.n_experts

    @property
    def columns(self) -> tuple[int, int]:
        """The half-open range of intermediate columns."""
        return self.first_column, self.first_column + self.n_columns


def place(config: ExpertsConfig, n_experts: int, n_columns: int, cpus: Sequence[int]) -> Placement:
    """The placement that `config` asks for.

    Args:
        n_experts: experts in each MoE layer of the model.
        n_columns: the model's intermediate size of an expert.
        cpus: the CPUs to compute on, `config.threads` of them at most.

    Raises:
        ConfigError: a range that the model does not have.
    """
    experts = _range("experts.experts", config.experts, n_experts, "experts")
    columns = _range("experts.columns", config.columns, n_columns, "intermediate columns")
    return Placement(
        shard_name(config),
        experts[0],
        experts[1] - experts[0],
        columns[0],
        columns[1] - columns[0],
        tuple(cpus),
    )


def shard_name(config: ExpertsConfig) -> str:
    """The name of the shard with these ranges."""
    parts = [] if config.experts == "all" else [config.experts]
    if config.columns != "all":
        parts.append(f"c{config.columns}")
    return "_".join(parts) or WHOLE_MODEL


def _range(option: str, text: str, size: int, what: str) -> tuple[int, int]:
    """`first-last`, both included, as a half-open range."""
    if text == "all":
        return 0, size
    first, last = (int(number) for number in text.split("-"))
    if not first <= last < size:
        raise ConfigError(
            f"{option} is {text}, but the model's {what} are 0-{size - 1}",
            remedy="write first-last, both included",
        )
    return first, last + 1
