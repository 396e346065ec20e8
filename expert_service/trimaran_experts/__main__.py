"""`python -m trimaran_experts`: the service, or one of its commands."""

from __future__ import annotations

import sys

from trimaran.lifecycle import run_service

from trimaran_experts.commands import is_command, run_command
from trimaran_experts.main import serve

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(run_command(arguments) if is_command(arguments) else run_service("experts", serve))
