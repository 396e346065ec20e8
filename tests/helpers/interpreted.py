"""Import this before any Triton kernel: without a GPU they run in Triton's interpreter, on the CPU."""

from __future__ import annotations

import os

import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
