"""Crashes of the server's services: what the supervisor wrote down, for Prometheus and for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from trimaran.crashes import ServiceCrashes

ReadCrashes = Callable[[], dict[str, ServiceCrashes]]


def explain_crashes(read: ReadCrashes) -> dict[str, str]:
    """A phrase for each service that has crashed, by its name."""
    now = time.monotonic()
    return {name: crashes.explain(now) for name, crashes in read().items() if crashes.count}


class CrashCollector(Collector):
    """Exports each service's crashes since the server started.

    Args:
        prefix: of the metrics' names.
        read: by service; empty where nobody supervises.
    """

    def __init__(self, prefix: str, read: ReadCrashes) -> None:
        self._prefix = prefix
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Prometheus' metric families."""
        crashes = CounterMetricFamily(
            f"{self._prefix}service_crashes", "Crashes since the server started", labels=["service"]
        )
        loops = GaugeMetricFamily(
            f"{self._prefix}service_crash_loop",
            "1 while the service crashes again and again and others do its work",
            labels=["service"],
        )
        for name, service in self._read().items():
            crashes.add_metric([name], service.count)
            loops.add_metric([name], service.in_loop)
        yield from (crashes, loops)
