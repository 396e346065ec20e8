"""`python -m trimaran_gateway --config FILE`."""

from __future__ import annotations

import sys

from trimaran.lifecycle import run_service

from trimaran_gateway.server import serve

if __name__ == "__main__":
    sys.exit(run_service("gateway", serve))
