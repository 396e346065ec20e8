"""`python -m trimaran_attn`."""

from __future__ import annotations

import os
import sys

# OpenMP's threads would spin for milliseconds after each operation, on cores that the experts need.
# It reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from trimaran.lifecycle import run_service

from trimaran_attn.main import serve

if __name__ == "__main__":
    sys.exit(run_service("attn", serve))
