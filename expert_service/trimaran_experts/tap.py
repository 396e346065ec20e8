"""Recordings of a running service's calls: begun, looked at and ended by messages."""

from __future__ import annotations

import time

from trimaran.errors import KernelError
from trimaran.telemetry import Log
from trimaran.wire import Record, Recorded
from trimaran_kernels.hop import CallGate, Recorder

MAX_BYTES = 1 << 40
MIN_BYTES = 4096
FORGOTTEN_S = 10.0
"""`trimaran experts record` asks twice a second."""

_log = Log(__name__)


class Tap:
    """At most one recording at a time. It ends when nobody has asked about it for `FORGOTTEN_S`.

    Args:
        fingerprint: of the model, for whoever replays.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._recorder: Recorder | None = None
        self._last_heard = 0.0

    def handle(self, message: Record, gate: CallGate) -> Recorded:
        """Do what the message asks; the state of the recording, after it has ended too."""
        if message.action != "start" or self._recorder is None:
            self._last_heard = time.monotonic()
        if message.action == "start":
            return self._start(message, gate)
        if message.action == "stop":
            return self._stop(gate)
        if message.action == "look":
            return self._state()
        return Recorded(error=f"recording: action {message.action!r:.40} is not start, look or stop")

    def drop_forgotten(self, now: float, gate: CallGate) -> None:
        """End a recording whose reader was killed: prompts shall not be written down for nobody."""
        if self._recorder is not None and now - self._last_heard > FORGOTTEN_S:
            _log.warning("nobody asks about the recording any more")
            self._stop(gate)

    def _stop(self, gate: CallGate) -> Recorded:
        state, self._recorder = self._state(), None
        gate.stop_recording()
        _log.info("recording ended", calls=state.calls, nbytes=state.nbytes)
        return state

    def _start(self, message: Record, gate: CallGate) -> Recorded:
        if self._recorder is not None:
            return Recorded(error="another recording is under way")
        if not MIN_BYTES <= message.max_bytes <= MAX_BYTES:
            return Recorded(error=f"recording: a size is {MIN_BYTES} bytes to 1 TiB, not {message.max_bytes}")
        try:
            self._recorder = gate.record(message.path, message.max_bytes, self._fingerprint)
        except KernelError as error:
            return Recorded(error=str(error))
        _log.info("recording calls", path=message.path, max_bytes=message.max_bytes)
        return self._state()

    def _state(self) -> Recorded:
        recorder = self._recorder
        if recorder is None:
            return Recorded(error="no recording is under way")
        return Recorded(calls=recorder.calls, nbytes=recorder.bytes, full=recorder.full)
