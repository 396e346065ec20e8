"""The attention service's process, from configuration to goodbye."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec.structs
import torch
from trimaran.channel import Server
from trimaran.config import AttnConfig, Config, ExpertsConfig
from trimaran.lifecycle import Stop
from trimaran.plan.sizes import largest_step
from trimaran.replicas import for_replica
from trimaran.run_dir import attn_endpoint, default_run_dir, open_run_dir
from trimaran.telemetry import Log
from trimaran.timeline import Tracer
from trimaran.wire import GatewayToEngine
from trimaran_kernels import ThreadPool

from trimaran_attn.device import start_threads
from trimaran_attn.engine import Engine
from trimaran_attn.experts import Experts
from trimaran_attn.experts_choice import choose_experts, connect
from trimaran_attn.experts_client import ExpertsClient, ModelFacts
from trimaran_attn.experts_link import ExpertsLink
from trimaran_attn.hop_steps import HopSteps
from trimaran_attn.loading import OpenModel, load_engine, open_model, planned_devices
from trimaran_attn.metrics import Meter
from trimaran_attn.service import AttnServer, AttnService
from trimaran_attn.worker import EngineWorker

Progress = Callable[[str, float], None]
_log = Log(__name__)


def serve(config: Config, stop: Stop) -> None:
    """Serve the configured model until told to stop.

    Raises:
        TrimaranError: the model, the device, the memory or the experts are not as configured.
    """
    model = open_model(for_replica(config, config.attn.replica))
    config = model.config
    with ExitStack() as stack:
        stack.enter_context(closing(model.file))
        run_dir = stack.enter_context(open_run_dir(config.run_dir or default_run_dir()))
        endpoint = attn_endpoint(run_dir.path, config.attn.replica)
        server: AttnServer = stack.enter_context(Server(endpoint, GatewayToEngine))
        meter, tracer = Meter(), Tracer()
        pool = start_threads(config.attn)
        link, way = open_link(model, run_dir.path, meter, pool)
        stack.enter_context(closing(link))
        stack.callback(way[1].close)  # before the link unmaps its arenas
        load = _loader(model, link, way, pool, meter=meter, tracer=tracer)
        worker = EngineWorker(load, link, model.fingerprint, config.attn.max_waiting)
        max_open = config.attn.max_running + config.attn.max_waiting
        _log.info("loading", model=model.spec.name, endpoint=server.endpoint)
        AttnService(server, worker, link, max_open, tracer).run(stop)


def open_link(
    model: OpenModel, run_dir: Path, meter: Meter, pool: ThreadPool
) -> tuple[ExpertsClient, tuple[Experts, HopSteps]]:
    """The client of the expert services, which is not connected yet, and the tensors' way through it."""
    config = model.config
    experts = hop_config(config.experts, model.device)
    slots = calls_in_flight(config.attn)
    rings = model.device.type == "cuda" and experts.notifier == "doorbell"
    devices = planned_devices(model)
    device_slots = slots if rings else 0
    link = ExpertsClient(
        experts,
        facts_of(model),
        run_dir,
        max_tokens=tokens_of_a_call(config.attn, model.device),
        n_slots=slots,
        device_slots=device_slots * len(devices),
    )
    decided = msgspec.structs.replace(config, experts=experts)
    way = choose_experts(
        link, decided, meter, spec=model.spec, pool=pool, devices=devices, device_slots=device_slots
    )
    return link, way


def hop_config(config: ExpertsConfig, device: torch.device) -> ExpertsConfig:
    """The experts' options with the hop's element type decided: float32 from a CPU, bfloat16 from a GPU."""
    if config.dtype != "auto":
        return config
    return msgspec.structs.replace(config, dtype="f32" if device.type == "cpu" else "bf16")


def tokens_of_a_call(config: AttnConfig, device: torch.device) -> int:
    """A GPU asks for a whole step's experts at once; a CPU's longest steps are cut, to save shared memory."""
    return largest_step(config, on_gpu=True) if device.type == "cuda" else config.max_step_tokens


def calls_in_flight(config: AttnConfig) -> int:
    """Calls that the model has under way at most: each part of a step one, and with deferral two more."""
    return max(4, config.micro_batches * (3 if config.defer_experts else 1))


def facts_of(model: OpenModel) -> ModelFacts:
    """What the experts must have loaded too."""
    spec = model.spec
    return ModelFacts(
        fingerprint=model.fingerprint,
        hidden_size=spec.hidden_size,
        top_k=spec.moe.top_k,
        n_experts=spec.moe.n_experts,
        layers=tuple(range(spec.n_dense_layers, spec.n_layers)),
    )


def _loader(
    model: OpenModel,
    link: ExpertsLink,
    way: tuple[Experts, HopSteps],
    pool: ThreadPool,
    *,
    meter: Meter,
    tracer: Tracer,
) -> Callable[[Progress], Engine]:
    experts, hop = way

    def load(on_progress: Progress) -> Engine:
        engine = load_engine(
            model,
            lambda _: experts,
            meter,
            progress=lambda share: on_progress("reading weights", share / 2),
            tracer=tracer,
            routed=link.expert_tokens,
            hop=hop,
            pool=pool,
        )
        connect(link, experts, lambda detail, share: _say_waiting(on_progress, detail, share))
        engine.warm_up()
        _spare_the_collector()
        limits = engine.scheduler.limits
        _log.info(
            "ready",
            device=str(model.device),
            context=limits.context_length,
            kv_pages=engine.scheduler.pages.n_pages,
            threads=pool.size,
        )
        return engine

    return load


def _spare_the_collector() -> None:
    """What was loaded stays: looking through a vocabulary's objects for garbage would only delay steps."""
    gc.collect()
    gc.freeze()


def _say_waiting(on_progress: Progress, detail: str, share: float) -> None:
    """What is waited for, in the log and in the status: whoever starts this service alone must see it too."""
    _log.info(detail, progress=round(share, 3))
    on_progress(detail, 0.5 + share / 2)
