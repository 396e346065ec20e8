"""A whole server over HTTP beside llama.cpp on the same file: prefill, decode, second turns, overheads.

    python benchmarks/serve.py --model build/models/DeepSeek-V2-Lite-synth-Q4_K_M.gguf --peer-python PYTHON

Both engines hold the model at once and are asked in turns, so that whatever else the machine does hits both;
the figures are medians. Ours are what a client of the three processes sees; llama.cpp is called through its C
API, with no server in between. Prompts are random token ids that were never seen before. Without a peer
(--peer-python or TRIMARAN_PEER_PYTHON) ours are measured alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from _completions import Completion, Prompts, complete
from _peer import LlamaCpp, find_peer
from _processes import cpu_seconds, read_metrics, resident_bytes, service_processes
from _report import Report
from serve_demo import predicted_rate
from trimaran.cli.serve import Server, own_server
from trimaran.config_loader import load_config, parse_assignments
from trimaran.gguf import GGUFFile
from trimaran.model_path import resolve_model
from trimaran.spec import read_spec
from trimaran.units import parse_bytes

SHORT_PROMPT = 16
NEW_TOKENS = 32
STATS_S = 2.5
"""The experts' counters are up to about a second old, the gateway's copy of them another."""
SPARE_BYTES = int(1.5e9)


@dataclass
class Case:
    """One figure, measured by turns on both engines.

    Attributes:
        measure, peer: one measurement of ours and of the other engine.
        floor: what the hardware allows.
    """

    name: str
    unit: str
    measure: Callable[[], float]
    peer: Callable[[LlamaCpp], float]
    higher_is_better: bool = True
    floor: float | None = None
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def run(self, peer: LlamaCpp | None) -> None:
        """Both, one after the other."""
        self.ours.append(self.measure())
        if peer is not None:
            self.theirs.append(self.peer(peer))
        theirs = f", llama.cpp {self.theirs[-1]:.4g}" if self.theirs else ""
        print(f"{self.name}: {self.ours[-1]:.4g}{theirs} {self.unit}", flush=True)

    def add_row(self, report: Report) -> None:
        """The medians."""
        report.row(
            self.name,
            statistics.median(self.ours),
            self.unit,
            peer="llama.cpp" if self.theirs else None,
            peer_value=statistics.median(self.theirs) if self.theirs else None,
            floor=self.floor,
            higher_is_better=self.higher_is_better,
        )


def main() -> None:
    """Measure and report."""
    options = parse_options()
    path = resolve_model(options.model)
    config = load_config(
        None,
        {
            **parse_assignments(options.set),
            "model": str(path),
            "attn.device": "cpu",
            "attn.context_length": longest(options),
            "attn.kv_memory": options.kv_memory,
        },
    )
    with GGUFFile.open(path) as file:
        vocab_size, file_bytes = read_spec(file).vocab_size, file.nbytes
    bound = predicted_rate(config)
    report = Report("serve", model=path.name, repetitions=options.repetitions, decoded=options.tokens)
    with own_server(config) as server, peer_of(options, path, report) as peer:
        prompts = Prompts(vocab_size, options.seed)
        cases = make_cases(server, prompts, options, bound)
        complete(server.url, [prompts.fresh(SHORT_PROMPT)], 2)
        for _ in range(options.repetitions):
            for case in cases:
                case.run(peer)
        for case in cases:
            case.add_row(report)
        add_shares(report, server, prompts, options)
        limit = file_bytes + parse_bytes(options.kv_memory) + SPARE_BYTES
        resident = resident_bytes(service_processes())
        report.row("resident memory; floor: file + KV + 1.5 GB", resident / 1e9, "GB", floor=limit / 1e9)
    report.write(options.json)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="build/models/DeepSeek-V2-Lite-synth-Q4_K_M.gguf")
    parser.add_argument("--peer-python", default=os.environ.get("TRIMARAN_PEER_PYTHON"))
    parser.add_argument("--peer-threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--prefill", nargs="*", type=int, default=[512, 4096], help="tokens of prompts")
    parser.add_argument("--streams", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--history", type=int, default=2048, help="tokens that two turns share")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--kv-memory", default="1GiB")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def longest(options: argparse.Namespace) -> int:
    """Tokens of the longest request."""
    return max([*options.prefill, options.history + NEW_TOKENS]) + options.tokens


@contextlib.contextmanager
def peer_of(options: argparse.Namespace, path: Path, report: Report) -> Iterator[LlamaCpp | None]:
    """The other engine, if there is one."""
    python = find_peer(options.peer_python)
    if python is None:
        yield None
        return
    streams = max(options.streams, default=1)
    context = max(longest(options), streams * (SHORT_PROMPT + options.tokens))
    threads = options.peer_threads
    with LlamaCpp(python, path, threads=threads, context=context, streams=streams) as peer:
        report.machine["peer"] = f"llama-cpp-python {peer.version}, {threads} threads, no repacking"
        yield peer


def make_cases(
    server: Server, prompts: Prompts, options: argparse.Namespace, bound: float | None
) -> list[Case]:
    """Everything that both engines do."""
    cases = [prefill_case(server, prompts, length) for length in options.prefill]
    for streams in options.streams:
        floor = bound if streams == 1 else None
        cases.append(decode_case(server, prompts, streams, options.tokens, floor))
    if options.history:
        cases.append(turns_case(server, prompts, options.history))
    return cases


def prefill_case(server: Server, prompts: Prompts, length: int) -> Case:
    """Tokens a second up to the first token of the answer."""

    def ours() -> float:
        (done,) = complete(server.url, [prompts.fresh(length)], 1)
        return length / done.first_s

    return Case(f"prefill {length}", "tok/s", ours, lambda peer: length / peer.prefill(prompts.fresh(length)))


def decode_case(server: Server, prompts: Prompts, streams: int, tokens: int, floor: float | None) -> Case:
    """Tokens a second of all streams together, once all have their first."""

    def ask() -> list[list[int]]:
        return [prompts.fresh(SHORT_PROMPT) for _ in range(streams)]

    def ours() -> float:
        done = complete(server.url, ask(), tokens)
        return streams * (tokens - 1) / decode_seconds(done)

    def theirs(peer: LlamaCpp) -> float:
        return streams * (tokens - 1) / peer.decode(ask(), tokens)

    return Case(f"decode {streams} stream{'s' if streams > 1 else ''}", "tok/s", ours, theirs, floor=floor)


def decode_seconds(done: list[Completion]) -> float:
    """From the last stream's first token to the last stream's end."""
    return max(one.ended_at for one in done) - max(one.first_at for one in done)


def turns_case(server: Server, prompts: Prompts, history: int) -> Case:
    """Time to the first token of a second turn as a share of the first's."""

    def ask() -> tuple[list[int], list[int]]:
        first = prompts.fresh(history)
        return first, first + prompts.fresh(NEW_TOKENS)

    def ours() -> float:
        first, second = ask()
        (before,) = complete(server.url, [first], 1)
        (after,) = complete(server.url, [second], 1)
        if not after.cached:
            raise SystemExit("the second turn found nothing of the first in the cache")
        return 100 * after.first_s / before.first_s

    def theirs(peer: LlamaCpp) -> float:
        before, after = peer.turns(*ask())
        return 100 * after / before

    name = f"second turn over {history} tokens, time to first token"
    return Case(name, "% of the first", ours, theirs, higher_is_better=False)


def add_shares(report: Report, server: Server, prompts: Prompts, options: argparse.Namespace) -> None:
    """What the gateway and the way to the experts take of one stream's decoding.

    The gateway: its CPU seconds, as if nothing ran beside them. The hops: from a submit to its answer in the
    attention service's hands, less what the experts computed; shared experts that take longer count too.
    Where the attention service computes routed experts itself: what their calls took beyond that.
    """
    gateway = service_processes()["trimaran_gateway"]
    time.sleep(STATS_S)
    before, cpu_before = read_metrics(server), cpu_seconds(gateway)
    (done,) = complete(server.url, [prompts.fresh(SHORT_PROMPT)], options.tokens)
    cpu_s = cpu_seconds(gateway) - cpu_before
    time.sleep(STATS_S)
    after = read_metrics(server)
    wall_s = done.ended_at - done.asked_at
    called_s, waited_s, computed_s = (
        after.get(name, 0.0) - before.get(name, 0.0)  # what never happened is not exported
        for name in (
            "trimaran_expert_rpc_latency_seconds_sum",
            "trimaran_attention_wait_on_experts_seconds_sum",
            "trimaran_expert_compute_seconds_total",
        )
    )
    report.row("gateway's share of one stream", 100 * cpu_s / wall_s, "%")
    report.row("hops' share of one stream", 100 * max(0.0, (called_s or waited_s) - computed_s) / wall_s, "%")


if __name__ == "__main__":
    main()
