"""How a service process starts and ends.

A service's `__main__` is:

    def serve(config: Config, stop: Stop) -> None: ...

    if __name__ == "__main__":
        sys.exit(run_service("attn", serve))

`run_service` reads the command line, loads the configuration, sets up logging and signals, and turns an
expected failure into one line on stderr and an exit code. A service that a supervisor started dies with it,
however the supervisor ends.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from trimaran.config import Config, GatewayConfig
from trimaran.config_loader import load_config, parse_assignments
from trimaran.errors import ConfigError, TrimaranError
from trimaran.telemetry import Log, configure_logging

SUPERVISOR_VARIABLE = "TRIMARAN_SUPERVISOR_PID"
STOP_MARGIN_S = 5.0
"""How long a service may take to stop once its running answers have had their time."""
EXIT_INTERRUPTED = 130
_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stop:
    """The wish to stop, set by a signal or by `request`. Ask `requested`, `wait`, or poll `fileno`.

    A pipe carries it, not a `threading.Event`: a signal handler may run while its own thread holds the
    event's lock.

    Attributes:
        grace_s: a process that has not ended so long after the wish is ended.
    """

    def __init__(self) -> None:
        self.grace_s = GatewayConfig().drain_s + STOP_MARGIN_S
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether somebody asked to stop."""
        return self._requested

    def request(self) -> None:
        """Asks to stop; safe in signal handlers and any thread, any number of times."""
        if not self._requested:
            self._requested = True
            os.write(self._writer, b"x")

    def wait(self, timeout: float | None = None) -> bool:
        """Sleeps until somebody asks to stop, at most `timeout` seconds; says whether somebody did."""
        if not self._requested:
            select.select([self._reader], [], [], timeout)
        return self._requested

    def fileno(self) -> int:
        """A descriptor that becomes readable, for good, with the request; never read from it."""
        return self._reader

    def close(self) -> None:
        """Gives the descriptors back."""
        os.close(self._reader)
        os.close(self._writer)


def run_service(name: str, serve: Callable[[Config, Stop], None], argv: Sequence[str] | None = None) -> int:
    """Runs a service until it ends or is told to stop; returns the exit code of the process.

    Args:
        name: the service's short name, e.g. `attn`; every log record carries it.
        serve: serves until `stop` is requested, then cleans up and returns.
        argv: arguments after the program's name; None takes the process's own.
    """
    arguments = _parse(name, argv)
    stop = Stop()
    install_stop_signals(stop)

    def start() -> None:
        die_with_supervisor()
        overrides = parse_assignments(arguments.set)
        config = load_config(arguments.config, overrides)
        configure_logging(name, config.log_level, config.log_format)
        stop.grace_s = config.gateway.drain_s + STOP_MARGIN_S
        serve(config, stop)
        Log(f"trimaran.{name}").info("stopped")

    return run_guarded(start, debug=arguments.debug)


def run_guarded(main: Callable[[], int | None], *, debug: bool = False) -> int:
    """Calls `main`, whose exit code None is 0; an expected failure is one line on stderr and an exit code.

    Any other failure is a traceback.
    """
    try:
        return main() or 0
    except TrimaranError as error:
        if debug:
            traceback.print_exc()
        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return 1


def say_error(error: TrimaranError) -> None:
    """Prints the error's one line on stderr."""
    line = " ".join(str(error).split())
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()


def install_stop_signals(stop: Stop) -> None:
    """SIGTERM, SIGINT and SIGHUP request the stop; a process that lives on for `stop.grace_s` is ended.

    Call it in the main thread.
    """

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if not stop.requested:
            stop.request()
            _end_after(stop.grace_s)

    for number in _STOP_SIGNALS:
        signal.signal(number, handle)


def _end_after(seconds: float) -> None:
    """Ends the process in `seconds`, even if its main thread hangs."""

    def end() -> None:
        time.sleep(seconds)
        os.write(2, b"error: not stopped in time, giving up\n")
        os._exit(1)

    threading.Thread(target=end, name="stop-watchdog", daemon=True).start()


def die_with_supervisor() -> None:
    """Asks the kernel for SIGTERM when the supervisor dies, if the environment names one.

    Call it in the main thread, before work begins.

    Raises:
        ConfigError: the variable names no process.
    """
    text = os.environ.get(SUPERVISOR_VARIABLE)
    if text is None:
        return
    if not text.isdigit():
        raise ConfigError(
            f"environment variable {SUPERVISOR_VARIABLE} is {text!r:.40}, but must be a process id"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(text):
        # It died before the request above: the kernel will not tell us any more.
        os.kill(os.getpid(), signal.SIGTERM)


def _parse(name: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"trimaran {name}", description=f"Runs the {name} service alone.")
    parser.add_argument("--config", metavar="FILE", help="YAML file, see docs/configuration.md")
    parser.add_argument("--set", metavar="OPTION=VALUE", action="append", default=[], help="sets one option")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of expected errors too")
    return parser.parse_args(argv)


def _silence_stdout() -> None:
    """Keeps the interpreter from complaining about the closed pipe when it flushes at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
