"""`trimaran experts record` and `stats`: a running service, tapped and asked."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trimaran.config import Config
from trimaran.errors import ConfigError, PeerError
from trimaran.units import format_bytes
from trimaran.wire import ExpertStats, ExpertStatsRequest, Record, Recorded

from trimaran_experts.asking import ServiceLine
from trimaran_experts.placement import shard_name
from trimaran_experts.tap import MAX_BYTES, MIN_BYTES

_LOOK_EVERY_S = 0.5


def record(config: Config, path: Path, max_bytes: int, seconds: float) -> None:
    """Let the running service write its calls to `path`, until it is full, time is up, or Ctrl-C.

    Raises:
        ConfigError: a size that no recording has. PeerError: no service answers, or it cannot record.
    """
    if not MIN_BYTES <= max_bytes <= MAX_BYTES:
        raise ConfigError(f"--limit is {max_bytes} bytes", remedy="give 4KiB to 1TiB")
    with ServiceLine(config, shard_name(config.experts)) as line:
        _checked(line.ask(Record(action="start", path=str(path.absolute()), max_bytes=max_bytes), Recorded))
        state, end = Recorded(), time.monotonic() + seconds
        try:
            while not state.full and (left := end - time.monotonic()) > 0:
                time.sleep(min(_LOOK_EVERY_S, left))
                state = _checked(line.ask(Record(action="look"), Recorded))
        except KeyboardInterrupt:
            sys.stderr.write("\n")
        finally:
            state = line.ask(Record(action="stop"), Recorded)
    full = ", which is all that fits" if state.full else ""
    sys.stdout.write(f"{state.calls} calls, {format_bytes(state.nbytes)}{full}: {path}\n")


def show_stats(config: Config) -> None:
    """Print the counters of the running service, and by layer how long its engine calls took."""
    with ServiceLine(config, shard_name(config.experts)) as line:
        stats = line.ask(ExpertStatsRequest(), ExpertStats)
    for name, value in sorted({**stats.counters, **stats.gauges}.items()):
        if "{" not in name:
            sys.stdout.write(f"{name:36} {value:g}\n")
    if stats.layer_times:
        sys.stdout.write("\nlayer   calls  p50 below  p99 below\n")
    for layer, counts in sorted(stats.layer_times.items()):
        p50, p99 = (_bound(counts, stats.time_bounds_ns, share) for share in (0.5, 0.99))
        sys.stdout.write(f"{layer:5} {sum(counts):7}  {p50:>9}  {p99:>9}\n")


def _bound(counts: Sequence[int], bounds_ns: Sequence[int], share: float) -> str:
    """The upper bound of the bucket that holds this share's call."""
    seen, wanted = 0, share * sum(counts)
    for count, bound in zip(counts, bounds_ns, strict=False):
        seen += count
        if seen >= wanted:
            return f"{bound / 1e6:g} ms"
    return "more"


def _checked(state: Recorded) -> Recorded:
    if state.error:
        raise PeerError(f"the expert service does not record: {state.error}")
    return state
