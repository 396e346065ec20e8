"""Recordings of a running service's calls: begun, looked at and ended by messages."""

from __future__ import annotations

from trimaran.errors import KernelError
from trimaran.telemetry import Log
from trimaran.wire import Record, Recorded
from trimaran_kernels.hop import CallGate, Recorder

MAX_BYTES = 1 << 40
_log = Log(__name__)


class Tap:
    """At most one recording at a time. It outlives who asked for it: its size bounds it.

    Args:
        fingerprint: of the model, for whoever replays.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._recorder: Recorder | None = None

    def handle(self, message: Record, gate: CallGate) -> Recorded:
        """Do what the message asks; the state of the recording, after it has ended too."""
        if message.action == "start":
            return self._start(message, gate)
        if message.action == "stop":
            state, self._recorder = self._state(), None
            gate.stop_recording()
            _log.info("recording ended", calls=state.calls, nbytes=state.nbytes)
            return state
        if message.action == "look":
            return self._state()
        return Recorded(error=f"recording: action {message.action!r:.40} is not start, look or stop")

    def _start(self, message: Record, gate: CallGate) -> Recorded:
        if self._recorder is not None:
            return Recorded(error="another recording is under way; stop it first")
        if not 0 < message.max_bytes <= MAX_BYTES:
            return Recorded(error=f"recording: {message.max_bytes} bytes is no size for a file")
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
