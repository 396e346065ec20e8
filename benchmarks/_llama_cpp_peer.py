"""llama.cpp behind a pipe: runs under the Python that has llama-cpp-python, and imports nothing of Trimaran.

    python _llama_cpp_peer.py model.gguf --threads 2 --context 8192

Answers one JSON line per JSON line: {"op": "prefill", "ids": […]} → seconds to the logits of the last token;
{"op": "decode", "prompts": [[…], …], "tokens": n} → seconds of n - 1 steps of all prompts at once, greedily;
{"op": "turns", "first": […], "second": […]} → seconds of both, the second keeping what they have in common.
Weight repacking is off: it copies the weights, and its AMX path aborts on files with split MLA tensors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import llama_cpp
import numpy as np

STEP_TOKENS = 512


class Peer:
    """One context of llama.cpp."""

    def __init__(self, path: str, threads: int, context: int, streams: int) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = False
        model_params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = STEP_TOKENS
        params.n_seq_max = streams
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit("llama.cpp cannot make a context")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(STEP_TOKENS, 0, 1)

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds of a fresh prompt."""
        self._clear()
        start = time.perf_counter()
        self._compute(ids, 0)
        return time.perf_counter() - start

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Seconds of `tokens` - 1 steps, each of one token of every prompt."""
        self._clear()
        following = []
        for stream, ids in enumerate(prompts):
            self._compute(ids, 0, stream)
            following.append(self._best(-1))
        position = [len(ids) for ids in prompts]
        start = time.perf_counter()
        for step in range(tokens - 1):
            rows = [(token, position[i] + step, i, True) for i, token in enumerate(following)]
            self._step(rows)
            following = [self._best(i) for i in range(len(rows))]
        return time.perf_counter() - start

    def turns(self, first: Sequence[int], second: Sequence[int]) -> tuple[float, float]:
        """Seconds to the first token of two prompts, the second of which begins like the first."""
        seconds = self.prefill(first)
        common = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
        start = time.perf_counter()
        llama_cpp.llama_memory_seq_rm(self._memory, 0, common, -1)
        self._compute(second[common:], common)
        return seconds, time.perf_counter() - start

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)

    def _compute(self, ids: Sequence[int], position: int, stream: int = 0) -> None:
        """A prompt from `position` on, in steps; logits of its last token only."""
        last = position + len(ids) - 1
        for start in range(0, len(ids), STEP_TOKENS):
            part = ids[start : start + STEP_TOKENS]
            places = range(position + start, position + start + len(part))
            self._step([(token, at, stream, at == last) for token, at in zip(part, places, strict=True)])
        self._best(-1)  # waits for the result

    def _step(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, stream, wants_logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = stream
            batch.logits[i] = wants_logits
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"llama_decode answered {status}")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


def main() -> None:
    """Load, say so, then answer until the input ends."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args()
    peer = Peer(options.path, options.threads, options.context, options.streams)
    say({"version": version("llama-cpp-python")})
    for line in sys.stdin:
        arguments: dict[str, Any] = json.loads(line)
        say({"seconds": getattr(peer, arguments.pop("op"))(**arguments)})


def say(message: dict[str, Any]) -> None:
    """One line to whoever started this."""
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
