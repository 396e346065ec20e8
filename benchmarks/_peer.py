"""Other engines, each in a process of its own under a Python that has it, asked by lines of JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

FOLDER = Path(__file__).parent


class Peer:
    """A script of this folder under another Python; use as a context manager.

    Args:
        python: the interpreter. script: its name here. arguments, options: of the script.
    """

    def __init__(self, python: str, script: str, *arguments: str, **options: int | str) -> None:
        command = [python, str(FOLDER / script), *arguments]
        for name, value in options.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
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

    def __enter__(self) -> Self:
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
        # The engines write lines of their own: ours are JSON objects.
        for line in self._stream(self._process.stdout):
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the peer ended with status {self._process.wait()}: {self._process.args}")

    def _stream(self, stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream


class LlamaCpp(Peer):
    """llama.cpp; every method answers seconds, as `_llama_cpp_peer.py` says.

    Args:
        python: an interpreter with llama-cpp-python.
        model: the file. context, streams: room in tokens and sequences.
    """

    def __init__(self, python: str, model: Path, *, threads: int, context: int, streams: int) -> None:
        super().__init__(
            python, "_llama_cpp_peer.py", str(model), threads=threads, context=context, streams=streams
        )

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


class KtKernel(Peer):
    """kt-kernel, one MoE layer; see `_kt_kernel_peer.py`."""

    def run(self, ids: Sequence[Sequence[int]]) -> float:
        """Seconds of one call: token t goes to the experts ids[t]."""
        return float(self._ask(ids=ids))


def find_peer(python: str | None, package: str = "llama_cpp") -> str | None:
    """The interpreter, if it can import `package`; None, and a line that says so, if there is no peer."""
    if python is None:
        print(f"no peer: name a Python that has {package} by --peer-python or TRIMARAN_PEER_PYTHON")
        return None
    command = [python, "-c", f"import {package}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"{python} cannot import {package}: {last}")
    return python
