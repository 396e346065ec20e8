"""Which layers go to which GPU: contiguous ranges, so that a token crosses a border once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from trimaran.errors import ConfigError


def place_layers(loads: Sequence[int], head: int, rooms: Sequence[int]) -> tuple[range, ...]:
    """Ranges of layers, one for each device, such that the fullest device is as empty as can be.

    Args:
        loads: bytes of each layer, its part of the cache included.
        head: bytes of what follows the last layer; on the last device.
        rooms: bytes of each device that layers may take. One that is negative or 0 counts as nearly none.

    Raises:
        ConfigError: there are more devices than layers.
    """
    if len(rooms) > len(loads):
        raise ConfigError(
            f"{len(rooms)} devices for a model of {len(loads)} layers", remedy="name fewer in attn.device"
        )
    sums = [0, *accumulate(loads)]
    # best[n]: the fullness of the devices so far if they hold n layers, and where each begins.
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for number, room in enumerate(rooms):
        is_last = number == len(rooms) - 1
        left = len(rooms) - number - 1
        stops = [len(loads)] if is_last else range(number + 1, len(loads) - left + 1)
        extra = head if is_last else 0
        best = {
            stop: min(
                (max(fullness, (sums[stop] - sums[start] + extra) / max(room, 1)), (*starts, start))
                for start, (fullness, starts) in best.items()
                if start < stop
            )
            for stop in stops
        }
    _, starts = best[len(loads)]
    return tuple(range(*border) for border in pairwise((*starts, len(loads))))


def parse_layers(text: str, n_layers: int, n_devices: int) -> tuple[range, ...]:
    """The ranges of `attn.layers`, e.g. `0-30,31-60`.

    Raises:
        ConfigError: they are not the model's layers in order, one range for each device.
    """
    ranges = [range(int(first), int(last) + 1) for first, last in (p.split("-") for p in text.split(","))]
    if len(ranges) != n_devices:
        raise ConfigError(
            f"attn.layers has {len(ranges)} ranges, attn.device names {n_devices} devices",
            remedy="one range for each device, in order",
        )
    borders = [0, *(part.stop for part in ranges)]
    in_order = all(part.start == border and part for part, border in zip(ranges, borders, strict=False))
    if not in_order or borders[-1] != n_layers:
        raise ConfigError(
            f"attn.layers is {text}: the ranges must follow one another from 0 to {n_layers - 1}, the model's"
            " last layer"
        )
    return tuple(ranges)
