"""The other engine of `serve.py`: llama.cpp in a process of its own, under a Python that has it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

SCRIPT = Path(__file__).with_name("_llama_cpp_peer.py")


class LlamaCpp:
    """Use as a context manager; every method answers seconds, as `_llama_cpp_peer.py` says.

    Args:
        python: an interpreter with llama-cpp-python.
        model: the file. context, streams: room in tokens and sequences.
    """

    def __init__(self, python: str, model: Path, *, threads: int, context: int, streams: int) -> None:
        command = [python, str(SCRIPT), str(model)]
        for name, value in (("threads", threads), ("context", context), ("streams", streams)):
            command += [f"--{name}", str(value)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self._process.kill()
            raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds of a fresh prompt."""
        return float(self._ask(op="prefill", ids=ids))

    def decode(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Seconds of `tokens` - 1 steps of all prompts."""
        return float(self._ask(op="decode", prompts=prompts, tokens=tokens))

    def turns(self, first: Sequence[int], second: Sequence[int]) -> tuple[float, float]:
        """Seconds of two prompts with a common beginning."""
        before, after = self._ask(op="turns", first=first, second=second)
        return before, after

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream(self._process.stdin).close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _ask(self, **request: Any) -> Any:
        stdin = self._stream(self._process.stdin)
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        return self._answer()["seconds"]

    def _answer(self) -> dict[str, Any]:
        # llama.cpp itself may write lines: ours are JSON objects.
        for line in self._stream(self._process.stdout):
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the peer ended with status {self._process.wait()}: {self._process.args}")

    def _stream(self, stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


def find_peer(python: str | None) -> str | None:
    """The interpreter, if it can import llama_cpp; None, and a line that says so, if there is no peer."""
    if python is None:
        print("no peer: name a Python that has llama-cpp-python by --peer-python or TRIMARAN_PEER_PYTHON")
        return None
    found = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True, check=False)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"{python} cannot import llama_cpp: {last}")
    return python
