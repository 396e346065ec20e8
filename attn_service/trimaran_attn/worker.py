"""The thread that loads the model and runs the engine, so that the service can answer meanwhile."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

from msgspec.structs import replace
from trimaran.errors import PeerError, TrimaranError
from trimaran.telemetry import Log
from trimaran.wire import EngineStatus, Generate

from trimaran_attn.engine import Engine, Event
from trimaran_attn.experts_link import ExpertsLink
from trimaran_attn.mailbox import Mailbox
from trimaran_attn.stopping import StepStoppedError

HELD_S = 0.01
"""How often an engine whose requests all wait for their grammars looks whether one is ready."""

LOOK_S = 0.5
"""How often an idle engine looks whether its experts are still there."""

STOPPING = "the attention service is stopping"
EXPERTS_AWAY = "the experts are away and looked for; try again in a moment"
"""For clients, who need not know how an expert service is reached; the status and the log say more."""
COMMAND_FAILED = "the request failed, see the attention service's log"
_log = Log(__name__)


class CancelledError(Exception):
    """Loading was given up because the service is to stop."""


@dataclass(frozen=True)
class SubmitCommand:
    """Serve a request. `received_at`: seconds of the monotonic clock."""

    message: Generate
    received_at: float

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.message.request_id


@dataclass(frozen=True)
class AbortCommand:
    """Forget a request."""

    request_id: str


@dataclass(frozen=True)
class StopCommand:
    """End the thread; unfinished requests fail."""


Command = SubmitCommand | AbortCommand | StopCommand
Output = Event | EngineStatus


class EngineWorker:
    """Owns the engine.

    Args:
        load: makes the engine; told where to report progress (one line, 0 to 1).
        link: the way to the experts; closed by whoever made it.
        fingerprint: of the model, for the status.
        max_waiting: for the status.

    Attributes:
        outbox: what clients should hear, and each change of status.
        status: how the engine is now.
        engine: None until it is loaded. Other threads may only read its statistics.
        failure: why loading failed or the thread ended, if it did; the last change of status follows it.
    """

    def __init__(
        self,
        load: Callable[[Callable[[str, float], None]], Engine],
        link: ExpertsLink,
        fingerprint: str,
        max_waiting: int,
    ) -> None:
        self.outbox: Mailbox[Output] = Mailbox()
        self.status = EngineStatus(
            state="loading",
            instance=secrets.token_hex(8),
            model_fingerprint=fingerprint,
            max_waiting=max_waiting,
            detail="starting",
        )
        self.engine: Engine | None = None
        self.failure: BaseException | None = None
        self._load = load
        self._link = link
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        # What a step found out is told when the next one begins to compute: its sender then works beside
        # the kernels, and not between two steps, where everybody waits.
        self._untold: list[Event] = []
        self._cancelled = False
        self._thread = Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def put(self, command: Command) -> None:
        """Hand a command over; taken before the next step. An abort ends a step that is for nobody else."""
        if self.engine is not None and isinstance(command, AbortCommand):
            self.engine.stop.announce(command.request_id)
        self._inbox.put(command)

    def stop(self, timeout_s: float) -> bool:
        """End the thread, after its layer or the next word of progress; False if that took too long."""
        self._cancelled = True
        self.put(StopCommand())
        if self.engine is not None:
            self.engine.stop.close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            engine = self._load(self._set_progress)
        except CancelledError:
            return
        except BaseException as error:
            self._give_up(error, "loading failed")
            return
        self.engine = engine
        try:
            self._serve(engine)
            engine.close()
        except BaseException as error:
            self._give_up(error, "the engine failed")

    def _give_up(self, error: BaseException, detail: str) -> None:
        self.failure = error
        self._set_status("draining", detail)

    def _serve(self, engine: Engine) -> None:
        self._set_status("ready", "")
        while self._take_commands(engine):
            if not self._link.ready():
                self._degrade(engine, "an expert service is away, reconnecting")
            elif self.status.state == "degraded":
                self._set_status("ready", "")
            self._step(engine)
            self._tend(engine)

    def _tend(self, engine: Engine) -> None:
        """What is not part of serving must not end it."""
        try:
            engine.tend()
        except Exception:
            _log.exception("looking after the experts failed")

    def _take_commands(self, engine: Engine) -> bool:
        """Everything in the inbox; sleeps if there is nothing else to do. False: the end."""
        busy = engine.has_work and not engine.is_held
        if not busy:
            self._tell()
        try:
            pause_s = HELD_S if engine.has_work else LOOK_S
            command = self._inbox.get(timeout=None if busy else pause_s, block=not busy)
            while self._obey(engine, command):
                command = self._inbox.get_nowait()
        except Empty:
            return True
        return False

    def _obey(self, engine: Engine, command: Command) -> bool:
        if isinstance(command, StopCommand):
            self._set_status("draining", STOPPING)
            self._emit(*engine.fail_all("unavailable", STOPPING))
            return False
        try:
            if isinstance(command, SubmitCommand):
                self._emit(engine.submit(command.message, command.received_at))
            else:
                self._emit(engine.abort(command.request_id))
        except Exception:
            # As with a step: one request's trouble is not the others'.
            _log.exception("command failed", request=command.request_id)
            self._emit(engine.fail(command.request_id, "internal", COMMAND_FAILED))
        return True

    def _step(self, engine: Engine) -> None:
        try:
            self._untold += engine.step(self._tell)
        except StepStoppedError:
            # The command that it was stopped for is in the inbox, or will be in a moment.
            self._link.settle()
        except Exception as error:
            # No fault, ours included, may take the service down with all other requests to come.
            self._link.settle()
            self._recover(engine, error)

    def _recover(self, engine: Engine, error: Exception) -> None:
        match error:
            case PeerError():
                self._degrade(engine, str(error))
            case TrimaranError():
                _log.error("step failed", reason=str(error))
                self._emit(*engine.fail_all("internal", str(error)))
            case _:
                _log.exception("step failed")
                self._emit(*engine.fail_all("internal", "the step failed, see the attention service's log"))

    def _degrade(self, engine: Engine, reason: str) -> None:
        if self.status.state != "degraded":
            _log.warning("degraded", reason=reason)
            self._set_status("degraded", reason)
        self._emit(*engine.fail_all("unavailable", EXPERTS_AWAY))

    def _set_progress(self, detail: str, progress: float) -> None:
        """Only remembered: a status is sent when the state changes, and to those who ask."""
        if self._cancelled:
            raise CancelledError
        self._replace_status("loading", detail, progress)

    def _set_status(self, state: str, detail: str) -> None:
        self._replace_status(state, detail, 1.0)
        self._tell()
        self.outbox.put(self.status)

    def _replace_status(self, state: str, detail: str, progress: float) -> None:
        engine = self.engine
        self.status = replace(
            self.status,
            state=state,
            detail=detail,
            progress=progress,
            context_length=0 if engine is None else engine.scheduler.limits.context_length,
        )

    def _emit(self, *events: Event | None) -> None:
        self._untold += [event for event in events if event is not None]
        self._tell()

    def _tell(self) -> None:
        self.outbox.put(*self._untold)
        self._untold.clear()


def received(message: Generate) -> SubmitCommand:
    """A request that arrived just now."""
    return SubmitCommand(message, time.monotonic())
