from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from trimaran.errors import PeerError, TrimaranError
from trimaran.lifecycle import SUPERVISOR_VARIABLE, Stop, run_guarded, run_service

SERVICE = """
import sys, os
from trimaran.lifecycle import run_service
def serve(config, stop):
    print("serving", config.gateway.port, flush=True)
    {body}
sys.exit(run_service("probe", serve))
"""


def start(body: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE.format(body=body), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environ,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_a_service_in_order(number: signal.Signals) -> None:
    process = start("stop.wait(); print('cleaned up')", "--set", "gateway.port=7")
    assert first_line(process) == "serving 7"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == "cleaned up\n"
    assert '"message": "stopped"' in err


def test_a_descriptor_tells_of_the_stop() -> None:
    process = start("import select; select.select([stop], [], [])")
    first_line(process)
    process.terminate()
    assert process.wait(20) == 0
    process.communicate()


def test_expected_failures_are_one_line_and_a_code() -> None:
    body = "from trimaran.errors import PeerError; raise PeerError('gone', remedy='look')"
    process = start(body)
    _, err = process.communicate(timeout=20)
    assert process.returncode == PeerError.exit_code
    assert err == "error: gone (look)\n"
    process = start(body, "--debug")
    _, err = process.communicate(timeout=20)
    assert "Traceback" in err
    assert err.endswith("error: gone (look)\n")


def test_a_bad_option_ends_with_code_two() -> None:
    process = start("pass", "--set", "gateway.prot=1")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert err == "error: gateway.prot is no option (did you mean gateway.port?)\n"


def test_a_service_dies_with_its_killed_supervisor(tmp_path: Path) -> None:
    code = tmp_path / "service.py"
    code.write_text(SERVICE.format(body="stop.wait()"))
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys, time\n"
            f"env = os.environ | {{'{SUPERVISOR_VARIABLE}': str(os.getpid())}}\n"
            f"child = subprocess.Popen([sys.executable, {str(code)!r}], env=env, start_new_session=True)\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert supervisor.stdout is not None
    child = psutil.Process(int(supervisor.stdout.readline()))
    assert supervisor.stdout.readline().startswith("serving")
    supervisor.kill()
    supervisor.communicate()
    child.wait(10)


def test_a_service_whose_supervisor_is_gone_stops_at_once() -> None:
    process = start("stop.wait()", **{SUPERVISOR_VARIABLE: "1"})
    assert process.wait(20) == 0
    process.communicate()


def test_guarded_passes_results_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_guarded(lambda: None) == 0

    def fail() -> None:
        raise TrimaranError("two\nlines")

    assert run_guarded(fail) == 1
    assert capsys.readouterr().err == "error: two lines\n"


def test_help_needs_no_configuration() -> None:
    with pytest.raises(SystemExit) as caught:
        run_service("probe", lambda _config, _stop: None, ["--help"])
    assert caught.value.code == 0


def test_stop_waits_and_times_out() -> None:
    stop = Stop()
    begin = time.monotonic()
    assert not stop.wait(0.05)
    assert time.monotonic() - begin >= 0.04
    stop.request()
    stop.request()
    assert stop.wait()
    stop.close()
