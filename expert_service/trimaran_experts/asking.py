"""Asks a running expert service, for commands: one question, one answer."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, TypeVar

from trimaran.channel import ChannelOptions, Client, CurveKeys, Malformed
from trimaran.config import Config
from trimaran.errors import PeerError
from trimaran.run_dir import default_run_dir, experts_endpoint
from trimaran.wire import EngineToExperts, ExpertsToEngine

TIMEOUT_S = 10.0
Answer = TypeVar("Answer")


class ServiceLine:
    """A line to the expert service that the configuration names: experts.listen, or the run directory's."""

    def __init__(self, config: Config, shard: str) -> None:
        run_dir = config.run_dir or default_run_dir()
        self.endpoint = config.experts.listen or experts_endpoint(run_dir, shard)
        curve = CurveKeys.load(config.experts.curve_key) if config.experts.curve_key else None
        self._client: Client[ExpertsToEngine, EngineToExperts] = Client(
            self.endpoint, ExpertsToEngine, ChannelOptions(curve=curve)
        )

    def ask(self, question: EngineToExperts, kind: type[Answer]) -> Answer:
        """The first answer of this kind.

        Raises:
            PeerError: none came in `TIMEOUT_S`.
        """
        deadline, sent = time.monotonic() + TIMEOUT_S, False
        while (left := deadline - time.monotonic()) > 0:
            sent = sent or self._client.send(question)
            event = self._client.recv(min(left, 0.1))
            if event is not None and not isinstance(event, Malformed) and isinstance(event.message, kind):
                return event.message
        raise PeerError(
            f"no expert service answers at {self.endpoint}",
            remedy="name its run directory with --set run_dir=…, or its address with --set experts.listen=…",
        )

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
