"""What expert deferral does to a model's predictions: `attn.defer_experts` from 0 to top_k - 1 against 0.

    python benchmarks/deferral.py
    python benchmarks/deferral.py --model build/models/DeepSeek-V2-Lite-synth-Q4_K_M.gguf --tokens 512

The bundled model reads conversations that it was not trained on, any other model random tokens. Logits are
of every position, given the true tokens before it. Divergence is KL(without || with deferral), in nats;
agreement is how often the likeliest next token is the same. The peer leaves the same experts out instead of
adding them later. All in this process, with the services' own kernels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import trimaran_kernels
from _report import Report
from torch import Tensor
from trimaran.gguf import GGUFFile
from trimaran.kv_format import choose_format
from trimaran.model_path import resolve_model
from trimaran.spec import ModelSpec, read_spec
from trimaran.wire import SamplingParams
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.model.deepseek2 import Deepseek2, build_model
from trimaran_attn.model.deferral import split_lightest
from trimaran_attn.model.modules import register_modules
from trimaran_attn.registry import Registry, Site
from trimaran_attn.request import Request
from trimaran_attn.runner import make_batch
from trimaran_attn.scheduler import Chunk, StepPlan
from trimaran_attn.weights import Weights
from trimaran_gateway.chat.prompt import ChatPromptRequest
from trimaran_gateway.model import load_model

HELD_OUT = Path(__file__).parents[1] / "tests" / "data" / "demo_held_out.jsonl"
CHUNK = 512
CPU = torch.device("cpu")


class KernelExperts:
    """A layer's routed experts, all but the lightest `drop`, computed at once by the kernels."""

    def __init__(self, site: Site, pool: trimaran_kernels.ThreadPool, drop: int) -> None:
        moe, hidden = site.spec.moe, site.spec.hidden_size
        wide = (moe.n_experts, moe.intermediate_size, hidden)
        narrow = (moe.n_experts, hidden, moe.intermediate_size)
        names = (("gate_proj", wide), ("up_proj", wide), ("down_proj", narrow))
        found = [site.weights.quantised(f"{site.path}.{name}", shape) for name, shape in names]
        self._engine = trimaran_kernels.ExpertEngine(
            pool, hidden, moe.intermediate_size, moe.n_experts, moe.top_k
        )
        gate, up, down = ((int(matrix.type), matrix.raw) for matrix in found)
        self._drop = drop
        self._engine.add_layer(site.layer, gate, up, down, 0, moe.n_experts)

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The answer is the ticket."""
        y = torch.empty_like(x)
        if self._drop:
            ids, _ = split_lightest(ids, weights, self._drop)
        arrays = [array.contiguous().numpy() for array in (x, ids, weights)]
        status = self._engine.forward(layer, *arrays, y.numpy())
        assert status == 0, f"the kernels refuse the call: status {status}"
        return y

    def wait(self, ticket: Tensor) -> Tensor:
        """The answer."""
        return ticket


def main() -> None:
    """Compare, print, and write the report."""
    options = parse_options()
    torch.set_num_threads(1)
    path = resolve_model(options.model)
    with GGUFFile.open(path) as file:
        spec = read_spec(file)
        texts = conversations(path) if options.model == "demo" else [random_ids(spec, options.tokens)]
        texts = list(up_to(texts, options.tokens))
        n_tokens = sum(map(len, texts))
        report = Report("deferral", model=spec.name, layers=spec.n_layers, tokens=n_tokens)
        plain = predictions(file, spec, texts)
        for count in range(1, spec.moe.top_k):
            deferred = against(plain, predictions(file, spec, texts, defer=count))
            dropped = against(plain, predictions(file, spec, texts, drop=count))
            tell(report, f"{count} of {spec.moe.top_k} deferred", deferred, dropped)
    report.write(options.json)


@dataclass(frozen=True)
class Change:
    """Of predictions: divergence in nats, and the share of equal likeliest tokens in percent."""

    mean: float
    percentile_99: float
    agreement: float


def against(plain: Tensor, changed: Tensor) -> Change:
    """Compare logits [tokens, vocab]."""
    before, after = plain.log_softmax(-1), changed.log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum(-1)
    agreement = (plain.argmax(-1) == changed.argmax(-1)).float().mean()
    return Change(float(divergence.mean()), float(divergence.quantile(0.99)), 100 * float(agreement))


def tell(report: Report, case: str, deferred: Change, dropped: Change) -> None:
    """Three rows."""
    report.row(f"{case}: divergence", deferred.mean, "nats", peer="dropped", peer_value=dropped.mean)
    tails = deferred.percentile_99, dropped.percentile_99
    report.row(f"{case}: its 99th percentile", tails[0], "nats", peer="dropped", peer_value=tails[1])
    report.row(
        f"{case}: same token",
        deferred.agreement,
        "%",
        peer="dropped",
        peer_value=dropped.agreement,
        higher_is_better=True,
    )


def predictions(
    file: GGUFFile, spec: ModelSpec, texts: list[list[int]], *, defer: int = 0, drop: int = 0
) -> Tensor:
    """Logits of all positions of all texts, [tokens, vocab]."""
    model = load(file, spec, defer, drop)
    longest = max(map(len, texts))
    cache = LatentCache(spec, -(-longest // PAGE_SIZE), CPU, choose_format("auto", exact=False))
    return torch.cat([rows for ids in texts for rows in read_text(model, cache, ids)])


def load(file: GGUFFile, spec: ModelSpec, defer: int, drop: int) -> Deepseek2:
    """The model as the attention service computes it on a CPU, but with the experts in this process."""
    registry = Registry(spec, Weights(file), CPU, torch.float32)
    pool = trimaran_kernels.ThreadPool(trimaran_kernels.usable_cpus())
    register_modules(
        registry,
        experts=lambda site: KernelExperts(site, pool, drop),
        pool=pool,
        linears="packed",
        mla="absorbed",
        native=True,
        defer_experts=defer,
    )
    return build_model(spec, registry, CPU)


def read_text(model: Deepseek2, cache: LatentCache, ids: list[int]) -> Iterator[Tensor]:
    """Logits of a text, chunk by chunk."""
    request = Request("text", ids, SamplingParams(), 1, pages=list(range(cache.n_pages)))
    for start in range(0, len(ids), CHUNK):
        length = min(CHUNK, len(ids) - start)
        batch = make_batch(StepPlan((Chunk(request, start, length),)), CPU)
        yield model.forward(replace(batch, sampled_rows=torch.arange(length)), cache).logits


def conversations(path: Path) -> Iterator[list[int]]:
    """Held-out conversations with their answers, as token ids; short and long ones mixed."""
    model = load_model(path)
    lines = HELD_OUT.read_text().splitlines()
    for index in np.random.default_rng(0).permutation(len(lines)):
        talk = json.loads(lines[index])
        answer = {"role": "assistant", "content": talk["answer"]}
        request = ChatPromptRequest([*talk["messages"], answer], add_generation_prompt=False)
        yield model.prompts.build(request).ids


def random_ids(spec: ModelSpec, count: int) -> list[int]:
    """For a model of which no text is known."""
    return [int(token) for token in np.random.default_rng(0).integers(0, spec.vocab_size, count)]


def up_to(texts: list[list[int]] | Iterator[list[int]], count: int) -> Iterator[list[int]]:
    """Texts until they have `count` tokens."""
    for ids in texts:
        yield ids
        count -= len(ids)
        if count <= 0:
            return


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="GGUF file, or demo")
    parser.add_argument("--tokens", type=int, default=8192, help="read about so many")
    parser.add_argument("--json", type=Path, help="where the report goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
