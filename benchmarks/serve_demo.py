"""A whole server under HTTP load: time to the first token and tokens a second, by the number of streams.

    python benchmarks/serve_demo.py --model demo --streams 1 8

Each stream is a client that asks again and again for a fixed number of tokens, greedily; the figures are
what the clients see. The bound beside one stream's rate is what reading the weights of each token at the
measured memory bandwidth would allow.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from _report import Report
from trimaran.bandwidth import measure_ram_bandwidth
from trimaran.cli.api_client import ApiClient
from trimaran.cli.serve import own_server
from trimaran.config import Config
from trimaran.config_loader import load_config
from trimaran.gguf import GGUFFile
from trimaran.machine import read_machine
from trimaran.model_path import resolve_model
from trimaran.plan import Bandwidth, make_plan
from trimaran.spec import read_spec

QUESTION = "Sort these numbers: 31 7 19 4 88 52"


@dataclass(frozen=True)
class Answer:
    """What one request looked like to its client: seconds to the first token and in all, and tokens."""

    first_s: float
    total_s: float
    tokens: int


def main() -> None:
    """Measure and report."""
    options = parse_options()
    config = load_config(None, {"model": options.model, "attn.device": options.device})
    bound = predicted_rate(config)
    report = Report("serve-demo", model=options.model, device=options.device, tokens=options.tokens)
    with own_server(config) as server:
        ask(server.api, options.tokens)
        for streams in options.streams:
            answers, seconds = load(server.url, streams, options)
            tokens = sum(answer.tokens for answer in answers)
            case = f"streams={streams}"
            report.row(f"{case} first token", 1e3 * statistics.median(a.first_s for a in answers), "ms")
            report.row(
                f"{case} decode of one",
                statistics.median((a.tokens - 1) / (a.total_s - a.first_s) for a in answers),
                "tok/s",
                floor=bound if streams == 1 else None,
                higher_is_better=True,
            )
            report.row(f"{case} all together", tokens / seconds, "tok/s")
    report.write(options.json)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--requests", type=int, default=4, help="requests of each stream")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of each answer")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    return parser.parse_args()


def predicted_rate(config: Config) -> float | None:
    """Tokens a second that the memory bandwidth allows one stream."""
    machine = read_machine()
    with GGUFFile.open(resolve_model(config.model)) as file:
        bandwidth = Bandwidth(ram=measure_ram_bandwidth(machine.cores))
        return make_plan(read_spec(file), file.tensors, machine, config, bandwidth).speed.tokens_per_second


def load(url: str, streams: int, options: argparse.Namespace) -> tuple[list[Answer], float]:
    """All answers of `streams` clients at once, and the seconds from the first request to the last answer."""

    def client(_number: int) -> list[Answer]:
        api = ApiClient(url)
        return [ask(api, options.tokens) for _ in range(options.requests)]

    started = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        answers = [answer for answers in pool.map(client, range(streams)) for answer in answers]
    return answers, time.perf_counter() - started


def ask(api: ApiClient, tokens: int) -> Answer:
    """One streamed request, measured."""
    messages = [{"role": "user", "content": QUESTION}]
    started = time.perf_counter()
    first = 0.0
    for _ in api.chat(messages, temperature=0, max_tokens=tokens, ignore_eos=True, model=api.model()):
        first = first or time.perf_counter() - started
    assert api.usage is not None, "the server tells no usage"
    return Answer(first, time.perf_counter() - started, api.usage.completion_tokens)


if __name__ == "__main__":
    main()
