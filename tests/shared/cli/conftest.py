from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trimaran.cli.services import Service

# A service that is started, configured and stopped like the real ones; BODY is what it does meanwhile.
SERVICE = """
import os, sys, time, threading
from pathlib import Path
from trimaran.lifecycle import run_service
from trimaran.telemetry import Log

def serve(config, stop):
    log = Log("fake")
{body}

sys.exit(run_service("{name}", serve))
"""

HEALTH = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"status": "ok"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = HTTPServer((config.gateway.host, config.gateway.port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
log.info("ready")
stop.wait()
"""

MakeService = Callable[[str, str], Service]


@pytest.fixture
def make_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeService]:
    """Writes a module that `python -m` runs as a service, from the body of its serve function."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))

    def make(name: str, body: str) -> Service:
        text = SERVICE.format(name=name, body=textwrap.indent(body, "    "))
        (folder / f"fake_{name}.py").write_text(text)
        return Service(name, f"fake_{name}", (), "")

    yield make
    for module in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[module]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file for the configuration to name; the fake services do not read it."""
    path = tmp_path / "model.gguf"
    path.touch()
    return path
