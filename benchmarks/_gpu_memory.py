"""A slice of DeepSeek-V3, real dimensions, under a cap: planned, loaded, and run over its whole context.

The plan is made for 24 GiB. Then the cap is lowered to what the plan says is needed, so that a byte more than
planned is an error of the allocator, not a figure in a table.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _gpu_bench import Bench
from _gpu_slice import write_slice
from torch import Tensor
from trimaran.config import AttnConfig, Config
from trimaran.errors import GpuMemoryError
from trimaran.machine import read_machine
from trimaran.plan import GPU_RESERVE, Plan, make_plan
from trimaran.spec import ModelSpec
from trimaran.synth import REAL_SPECS
from trimaran.wire import Generate, RequestFailed, SamplingParams, TokenBatch
from trimaran_attn.engine import Engine
from trimaran_attn.loading import load_engine, open_model
from trimaran_attn.metrics import Meter

V3 = REAL_SPECS["DeepSeek-V3"]
SLICE = replace(
    V3, n_layers=3, n_dense_layers=1, moe=replace(V3.moe, intermediate_size=256, n_shared=8 * V3.moe.n_shared)
)
"""One dense layer and two with experts; the whole router and vocabulary, and shared experts as wide as V3's.
Routed ones, which nobody reads here, are narrow: the plan counts their memory as well."""

CONTEXT, TOKENS = 131072, 32
LIMIT = "24GiB"
SECONDS = 30.0
"""For the prompt: what is not computed by then is left out, and said."""


class Echo:
    """Experts that answer at once, with nothing: the GPU's memory is what is looked at. Hops are launches."""

    is_attached = True

    def submit(self, layer: int, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The answer is the ticket."""
        del layer, ids, weights
        return torch.zeros_like(x)

    def wait(self, ticket: Tensor) -> Tensor:
        """The answer."""
        return ticket

    def step(self) -> AbstractContextManager[None]:
        """Nothing to begin."""
        return nullcontext()

    def padded(self, live: Tensor) -> AbstractContextManager[None]:
        """Padding costs nothing."""
        del live
        return nullcontext()


@dataclass(frozen=True)
class Run:
    """How far a request came: tokens of its prompt, tokens drawn, seconds of both."""

    prompt: int
    drawn: int
    prefill_s: float
    decode_s: float


def check_memory(bench: Bench, spec: ModelSpec = SLICE, context: int = CONTEXT) -> None:
    """Plan, load and run; the peak against the plan."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_slice(Path(folder) / "slice.gguf", spec)
        planned = _plan(_config(bench, path, context, LIMIT))
        if planned.gpu is None:
            _use(bench, _config(bench, path, context, LIMIT), context)
            return
        bench.row("V3 slice, planned", planned.gpu.needed / 2**30, "GiB", floor=planned.gpu.available / 2**30)
        try:
            held = _peak(bench, _config(bench, path, context, f"{planned.gpu.needed}B"), context)
        except (GpuMemoryError, torch.OutOfMemoryError) as error:
            bench.fail(f"memory: what is planned does not do: {error}")
            held = _peak(bench, _config(bench, path, context, LIMIT), context)
        _tell(bench, planned, held)


def _peak(bench: Bench, config: Config, context: int) -> int:
    """Bytes that the allocator had reserved at most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    before = torch.cuda.memory_reserved(bench.device)
    try:
        _use(bench, config, context)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)  # the next sections have all of it
    return torch.cuda.max_memory_reserved(bench.device) - before


def _tell(bench: Bench, planned: Plan, held: int) -> None:
    """The allocator's peak must be within what is planned beside the reserve, which it does not see."""
    assert planned.gpu is not None
    allowed = planned.gpu.needed - GPU_RESERVE
    for part, nbytes in (
        ("weights", sum(share.weights for share in planned.gpus)),
        ("fp8 cache of the context", planned.kv_bytes),
        ("workspace", planned.workspace),
    ):
        bench.row(f"V3 slice, planned for {part}", nbytes / 2**30, "GiB")
    bench.row("V3 slice, held at most", held / 2**30, "GiB", floor=allowed / 2**30)
    if held > allowed:
        bench.fail(f"memory: {held / 2**30:.2f} GiB were held, {allowed / 2**30:.2f} GiB planned")


def _use(bench: Bench, config: Config, context: int) -> None:
    """A prompt that fills the context but for some tokens, then these tokens."""
    model, experts = open_model(config), Echo()
    try:
        engine = load_engine(model, lambda _: experts, Meter(), hop=experts)
        engine.warm_up()
        run = _fill(bench, engine, model.spec.vocab_size, context)
    finally:
        model.file.close()
    layers = model.spec.n_layers
    reached = f"{run.prompt} of {context} tokens"
    bench.row(f"prefill of {layers} V3 layers, {reached}", run.prompt / run.prefill_s, "tok/s")
    if run.drawn:
        bench.row(
            f"decode of {layers} V3 layers behind {reached}", run.decode_s / run.drawn * 1e3, "ms a token"
        )


def _fill(bench: Bench, engine: Engine, vocab_size: int, context: int) -> Run:
    wanted = context - TOKENS
    ids = torch.randint(0, vocab_size, (wanted,)).tolist()
    sampling = SamplingParams(temperature=0.0, max_tokens=TOKENS)
    refused = engine.submit(Generate(request_id="long", prompt_ids=ids, sampling=sampling))
    if refused is not None:
        raise RuntimeError(refused.message)
    (request,) = engine.scheduler.requests()
    began = time.monotonic()
    first, drawn, reached = 0.0, 0, 0
    while engine.has_work:
        for event in engine.step():
            match event:
                case RequestFailed(message=message):
                    raise RuntimeError(message)
                case TokenBatch(ids=ids):
                    drawn += len(ids)
        now = time.monotonic()
        if drawn:
            first, reached = first or now, wanted
        else:
            reached = request.n_computed
            if now - began > SECONDS:
                bench.skip("the rest of the prompt", f"{reached} tokens took {now - began:.0f} s")
                engine.abort("long")
    ended = time.monotonic()
    return Run(reached, max(0, drawn - 1), (first or ended) - began, ended - (first or ended))


def _config(bench: Bench, path: Path, context: int, memory: str) -> Config:
    device = "cpu" if bench.tiny else "cuda:0"
    return Config(
        model=str(path),
        attn=AttnConfig(
            device=device, gpu_memory=memory, context_length=context, kv_dtype="fp8", max_running=2
        ),
    )


def _plan(config: Config) -> Plan:
    model = open_model(config)
    try:
        machine = read_machine(with_gpus=model.device.type == "cuda")
        return make_plan(model.spec, model.file.tensors, machine, config)
    finally:
        model.file.close()
