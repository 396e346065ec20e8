"""`python -m trimaran_experts`."""

from __future__ import annotations

import sys

from trimaran.lifecycle import run_service

from trimaran_experts.main import serve

if __name__ == "__main__":
    sys.exit(run_service("experts", serve))
