"""kt-kernel's side of `experts.py`, under a Python that has it: JSON requests come in, seconds go out.

    python benchmarks/_kt_kernel_peer.py gate.bin up.bin down.bin --type 12 --hidden 7168 …

The files hold the experts' matrices one after another in GGUF's encoding, from which its llamafile back end
computes; `--back-end AMXInt4_MOE` or AMXInt8_MOE take bfloat16 weights and quantise them themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import kt_kernel
import numpy as np
import torch
from kt_kernel import kt_kernel_ext

LONGEST = 1024
GGML_BF16 = 30


def main() -> None:
    """Load, say the version, then answer until the input ends."""
    options = parse_options()
    pool = kt_kernel_ext.WorkerPoolConfig()
    pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [options.threads]
    infer = kt_kernel_ext.CPUInfer(pool)
    layer = Layer(infer, options)
    print(json.dumps({"version": kt_kernel.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({"seconds": layer.run(request["ids"])}), flush=True)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs=3)
    for name in ("type", "hidden", "intermediate", "experts", "top-k", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--back-end", default="MOE")
    return parser.parse_args()


class Layer:
    """One MoE layer."""

    def __init__(self, infer: kt_kernel_ext.CPUInfer, options: argparse.Namespace) -> None:
        moe = kt_kernel_ext.moe
        self._infer, self._options = infer, options
        self._on_gpu = torch.zeros(options.experts, dtype=torch.bool)  # it keeps the pointer
        config = moe.MOEConfig(
            options.experts, options.top_k, options.hidden, options.intermediate, self._on_gpu.data_ptr()
        )
        config.layer_idx, config.pool, config.max_len = 0, infer.backend_, LONGEST
        self._matrices = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in options.files]
        if options.back_end == "MOE":
            config.m_block, config.group_min_len, config.group_max_len = 32, 10, LONGEST
            config.gate_type = config.up_type = config.down_type = options.type
            config.hidden_type = GGML_BF16
        config.gate_proj, config.up_proj, config.down_proj = (matrix.data_ptr() for matrix in self._matrices)
        self._moe = getattr(moe, options.back_end)(config)
        order = torch.arange(options.experts, dtype=torch.int64)
        infer.submit(self._moe.load_weights_task(order.data_ptr()))
        infer.sync()

    def run(self, ids: list[list[int]]) -> float:
        """Seconds of one call: token t goes to the experts ids[t]."""
        chosen = torch.tensor(ids, dtype=torch.int64)
        weights = torch.full(chosen.shape, 1 / chosen.shape[1], dtype=torch.float32)
        x = torch.randn(len(ids), self._options.hidden).to(torch.bfloat16)
        y, count = torch.empty_like(x), torch.tensor([len(ids)], dtype=torch.int32)
        start = time.perf_counter()
        self._infer.submit(
            self._moe.forward_task(
                count.data_ptr(),
                chosen.shape[1],
                chosen.data_ptr(),
                weights.data_ptr(),
                x.data_ptr(),
                y.data_ptr(),
                False,
            )
        )
        self._infer.sync()
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
