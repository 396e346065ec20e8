"""Whether the shards make up the model: every column of every expert on exactly one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from trimaran.errors import PeerMismatchError
from trimaran.wire import Ready

Range = tuple[int, int]


@dataclass(frozen=True)
class Slice:
    """A shard's part: half-open ranges of expert ids and of intermediate columns."""

    experts: Range
    columns: Range
    all_columns: bool

    @classmethod
    def of(cls, ready: Ready) -> Slice:
        """What a shard said that it owns."""
        return cls(ready.experts, ready.columns, ready.columns == (0, ready.n_columns))

    def __str__(self) -> str:
        columns = "" if self.all_columns else f", columns {_text(self.columns)}"
        return f"experts {_text(self.experts)}{columns}"

    def overlaps(self, other: Slice) -> bool:
        """Whether some column of some expert is in both."""
        return _overlap(self.experts, other.experts) and _overlap(self.columns, other.columns)


def check_coverage(shards: Mapping[str, Ready], n_experts: int) -> None:
    """Compare what the shards own, by endpoint, with the whole.

    Raises:
        PeerMismatchError: something is on no shard or on two, so that sums would be wrong.
    """
    slices = sorted(((Slice.of(ready), endpoint) for endpoint, ready in shards.items()), key=_order)
    for (one, _), (two, endpoint) in combinations(slices, 2):
        if one.overlaps(two):
            experts, columns = _common(one.experts, two.experts), _common(one.columns, two.columns)
            both = Slice(experts, columns, one.all_columns and two.all_columns)
            raise PeerMismatchError(
                f"shard {endpoint}: {both} are twice", remedy="give shards that share none"
            )
    for first in range(n_experts):
        _check_expert(first, [part for part, _ in slices], max(ready.n_columns for ready in shards.values()))


def _check_expert(expert: int, slices: list[Slice], n_columns: int) -> None:
    """One expert's columns must be there from the first to the last."""
    end = 0
    parts = (part.columns for part in slices if part.experts[0] <= expert < part.experts[1])
    for columns in [*sorted(parts), (n_columns, n_columns)]:
        if columns[0] > end:
            missing = f", columns {_text((end, columns[0]))}" if (end, columns[0]) != (0, n_columns) else ""
            raise PeerMismatchError(
                f"expert {expert}{missing} is on no shard", remedy="name all shards in experts.endpoints"
            )
        end = columns[1]


def _order(item: tuple[Slice, str]) -> tuple[Range, Range]:
    return item[0].experts, item[0].columns


def _common(one: Range, two: Range) -> Range:
    return max(one[0], two[0]), min(one[1], two[1])


def _overlap(one: Range, two: Range) -> bool:
    first, end = _common(one, two)
    return first < end


def _text(half_open: Range) -> str:
    return f"{half_open[0]}-{half_open[1] - 1}"
