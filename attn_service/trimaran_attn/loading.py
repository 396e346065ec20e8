"""From a configuration to an engine: device, threads, weights, cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from trimaran.config import AttnConfig, Config, Precision
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.kv_format import KvFormat, choose_format
from trimaran.machine import read_machine
from trimaran.model_path import resolve_model
from trimaran.plan import Plan, check_plan, make_plan
from trimaran.plan.sizes import largest_step
from trimaran.rules import Chosen, apply_rules
from trimaran.spec import ModelSpec, read_spec
from trimaran.telemetry import Log
from trimaran.timeline import Tracer
from trimaran_kernels import ThreadPool

from trimaran_attn.cache_plan import plan_cache
from trimaran_attn.device import (
    choose_device,
    compute_dtype,
    count_gpus,
    enter_gpus,
    explained_memory,
    start_threads,
)
from trimaran_attn.drawing import Drawer, choose_drawer
from trimaran_attn.engine import Engine
from trimaran_attn.experts import Experts
from trimaran_attn.gpu_experts.build import Residents
from trimaran_attn.gpu_experts.caretaker import Routed
from trimaran_attn.grammar.compiler import GrammarCompiler
from trimaran_attn.grammar.constraints import Constraints
from trimaran_attn.grammar.vocabulary import read_token_table
from trimaran_attn.graph.capture import CudaRecorder
from trimaran_attn.graph.inputs import InputShape
from trimaran_attn.graph.steps import StepGraphs
from trimaran_attn.hop_steps import HopSteps
from trimaran_attn.kv_cache import PAGE_SIZE, LatentCache
from trimaran_attn.metrics import Meter
from trimaran_attn.model.deepseek2 import Deepseek2, ForwardOptions, build_model
from trimaran_attn.model.deferral import check_deferral
from trimaran_attn.model.modules import register_modules
from trimaran_attn.pages import PageAllocator
from trimaran_attn.placement import Placement
from trimaran_attn.registry import Registry, Site
from trimaran_attn.runner import Runner
from trimaran_attn.scheduler import Limits, Scheduler
from trimaran_attn.seat import SeatedModel
from trimaran_attn.stopping import StepStop
from trimaran_attn.weights import Weights

_log = Log(__name__)


@dataclass(frozen=True)
class OpenModel:
    """A model file that was checked; its weights are not read yet.

    Attributes:
        device: where tokens enter; the plan may place layers on further ones of its kind.
        chosen: by the rules file.
    """

    file: GGUFFile
    spec: ModelSpec
    fingerprint: str
    device: torch.device
    chosen: Chosen

    @property
    def config(self) -> Config:
        """The configuration, with the devices that its rules name."""
        return self.chosen.config


def open_model(config: Config) -> OpenModel:
    """Open the configured model.

    Raises:
        ConfigError: there is no such device, or the rules file is wrong.
        ModelFileError: the file is missing, damaged or of another architecture.
        PlanError: it does not fit.
    """
    file = GGUFFile.open(resolve_model(config.model))
    try:
        spec = read_spec(file)
        chosen = apply_rules(config, spec, count_gpus())
        device = choose_device(chosen.config.attn.device)
        return OpenModel(file, spec, fingerprint(file, spec), device, chosen)
    except BaseException:
        file.close()
        raise


def planned_devices(model: OpenModel) -> tuple[torch.device, ...]:
    """Where layers will be, in their order.

    Raises:
        PlanError: as `load_engine` does.
    """
    return tuple(stage.device for stage in Placement.planned(_plan(model), model.spec.n_layers).stages)


def _plan(model: OpenModel) -> Plan:
    machine = read_machine(with_gpus=model.device.type == "cuda")
    tensors = model.file.tensors
    return make_plan(model.spec, tensors, machine, model.config, held=model.chosen.held(tensors))


def load_engine(
    model: OpenModel,
    experts: Callable[[Site], Experts],
    meter: Meter,
    *,
    progress: Callable[[float], None] = lambda _: None,
    tracer: Tracer | None = None,
    routed: Routed = dict,
    hop: HopSteps | None = None,
    pool: ThreadPool | None = None,
) -> Engine:
    """Read the weights and size the cache.

    Args:
        model: from `open_model`, with the configuration.
        experts: gives each layer its way to the routed experts.
        meter: takes the histograms' samples.
        progress: told the share that is done, 0 to 1.
        tracer: records timelines.
        routed: what the expert services count of each expert's tokens, for `attn.gpu_experts`.
        hop: the experts, to be told of steps.
        pool: threads to compute on; None starts some.

    Raises:
        ConfigError: a context longer than the model's, or as many deferred experts as a token uses.
        PlanError: the model or the context do not fit the memory.
        ModelFileError: a tensor is missing or has another shape.
    """
    for notice in model.chosen.notices:
        _log.warning(notice)
    attn, tracer, stop = model.config.attn, tracer or Tracer(), StepStop()
    check_deferral(model.spec, attn.defer_experts)
    layout = _lay_out(model)
    residents = Residents(attn, model.file, model.spec, model.fingerprint, layout.plan)
    pool = pool or start_threads(attn)
    with explained_memory("loading the model"):
        network = _build_network(
            model,
            layout,
            experts=residents.wrap(experts),
            pool=pool,
            progress=progress,
            options=ForwardOptions(attn.micro_batches, tracer, stop),
        )
        cache = LatentCache(model.spec, layout.cache_pages, layout.placement, layout.kv_format)
    drawer = choose_drawer(layout.placement.last, model.spec.vocab_size)
    graphs = None
    if hop is not None and layout.records_steps:
        graphs = _step_graphs(
            model, layout, network=network, cache=cache, hop=hop, tracer=tracer, drawer=drawer
        )
    seated = SeatedModel(network, pool.cpus[0]) if model.device.type == "cpu" else network
    table = read_token_table(model.file.metadata)
    return Engine(
        Scheduler(layout.limits, PageAllocator(layout.pages), prefix_cache=attn.prefix_cache),
        Runner(seated, cache, layout.placement.first, hop, graphs, drawer=drawer),
        model.spec.vocab_size,
        meter,
        constraints=None if table is None else Constraints(GrammarCompiler(table)),
        tracer=tracer,
        caretaker=residents.caretaker(routed),
        draws_ahead=drawer is not None,
        on_close=residents.close,
        stop=stop,
    )


@dataclass(frozen=True)
class _Layout:
    """What is decided before any weights are read.

    Attributes:
        pages: of the cache, for requests.
        dtype: of what is computed with.
        exact: whether the CPU rounds nothing on the way.
        records_steps: see the function of that name.
    """

    plan: Plan
    placement: Placement
    kv_format: KvFormat
    limits: Limits
    pages: int
    dtype: torch.dtype
    exact: bool
    records_steps: bool

    @property
    def cache_pages(self) -> int:
        """The requests' pages, and one that padding of recorded steps is written to."""
        return self.pages + self.records_steps


def _lay_out(model: OpenModel) -> _Layout:
    """Where layers go, and how much cache and how long steps there may be."""
    config, device, attn = model.config, model.device, model.config.attn
    plan = _plan(model)
    check_plan(plan)
    placement = Placement.planned(plan, model.spec.n_layers)
    enter_gpus({torch.device("cuda", share.number): share.budget.available for share in plan.gpus})
    if len(placement.stages) > 1:
        _log.info("layers on several devices", placement=str(placement))
    if plan.re_encoded:
        _log.warning("held as the nearest Q8_0 weights on the GPU", types=" ".join(plan.re_encoded))
    exact = config.precision == "exact" and device.type == "cpu"
    kv_format = choose_format(attn.kv_dtype, exact=exact)
    cache_plan = plan_cache(model.spec, attn, kv_format, plan)
    limits = Limits(
        context_length=cache_plan.context_length,
        max_running=attn.max_running,
        max_waiting=attn.max_waiting,
        max_step_tokens=attn.max_step_tokens,
        page_size=PAGE_SIZE,
        lone_step_tokens=largest_step(attn, on_gpu=device.type == "cuda"),
    )
    return _Layout(
        plan,
        placement,
        kv_format,
        limits,
        pages=cache_plan.n_pages,
        dtype=compute_dtype(device),
        exact=exact,
        records_steps=records_steps(attn, placement),
    )


def _build_network(
    model: OpenModel,
    layout: _Layout,
    *,
    experts: Callable[[Site], Experts],
    pool: ThreadPool,
    progress: Callable[[float], None],
    options: ForwardOptions,
) -> Deepseek2:
    """Read the weights into modules, those of the rules where they choose."""
    attn = model.config.attn
    weights = Weights(model.file)
    registry = Registry(model.spec, weights, layout.placement, layout.dtype, model.chosen.choices)
    register_modules(
        registry,
        experts=experts,
        pool=pool,
        linears=_linears(model.device, model.config.precision),
        mla=attn.mla,
        native=True,
        exact_maps=layout.exact,
        defer_experts=attn.defer_experts,
    )
    return build_model(model.spec, registry, layout.placement, progress, options)


def _step_graphs(
    model: OpenModel,
    layout: _Layout,
    *,
    network: Deepseek2,
    cache: LatentCache,
    hop: HopSteps,
    tracer: Tracer,
    drawer: Drawer | None,
) -> StepGraphs:
    """Recordings of decode steps, none made yet."""
    limits, devices = layout.limits, tuple(stage.device for stage in layout.placement.stages)
    rows = min(limits.max_running, limits.max_step_tokens)
    widest = InputShape(rows, limits.context_length, model.spec.hidden_size, layout.dtype, layout.pages)
    recorder = CudaRecorder(*devices)
    return StepGraphs(
        network, cache, hop, recorder, widest=widest, devices=devices, tracer=tracer, drawer=drawer
    )


def records_steps(attn: AttnConfig, placement: Placement) -> bool:
    """Whether decode steps are recorded."""
    if attn.cuda_graphs != "auto" or placement.first.type != "cuda":
        return False
    if len(placement.stages) > 1 and attn.defer_experts:
        _log.info("decode steps are not recorded", reason="attn.defer_experts with layers on several GPUs")
        return False
    return True


def _linears(device: torch.device, precision: Precision) -> str:
    """Which implementation of matrices the device and the precision ask for."""
    if device.type != "cpu":
        return "gpu"
    return "packed" if precision == "int8" else "quantised"
