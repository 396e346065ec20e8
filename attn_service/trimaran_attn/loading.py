"""From a configuration to an engine: device, threads, weights, cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from trimaran.config import AttnConfig, Config, Precision
from trimaran.fingerprint import fingerprint
from trimaran.gguf import GGUFFile
from trimaran.kv_format import choose_format
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
from trimaran_attn.drawing import choose_drawer
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
from trimaran_attn.model.deepseek2 import ForwardOptions, build_model
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
    config, spec, device, attn = model.config, model.spec, model.device, model.config.attn
    for notice in model.chosen.notices:
        _log.warning(notice)
    check_deferral(spec, attn.defer_experts)
    plan = _plan(model)
    check_plan(plan)
    placement = Placement.planned(plan, spec.n_layers)
    enter_gpus({torch.device("cuda", share.number): share.budget.available for share in plan.gpus})
    if len(placement.stages) > 1:
        _log.info("layers on several devices", placement=str(placement))
    if plan.re_encoded:
        _log.warning("held as the nearest Q8_0 weights on the GPU", types=" ".join(plan.re_encoded))
    dtype = compute_dtype(device)
    exact = config.precision == "exact" and device.type == "cpu"
    kind = choose_format(attn.kv_dtype, exact=exact)
    cache_plan = plan_cache(spec, attn, kind, plan)
    residents = Residents(attn, model.file, spec, model.fingerprint, plan)
    replays = records_steps(attn, placement)
    registry = Registry(spec, Weights(model.file), placement, dtype, model.chosen.choices)
    pool = pool or start_threads(attn)
    register_modules(
        registry,
        experts=residents.wrap(experts),
        pool=pool,
        linears=_linears(device, config.precision),
        mla=attn.mla,
        native=True,
        exact_maps=exact,
        defer_experts=attn.defer_experts,
    )
    stop = StepStop()
    with explained_memory("loading the model"):
        network = build_model(
            spec, registry, placement, progress, ForwardOptions(attn.micro_batches, tracer or Tracer(), stop)
        )
        cache = LatentCache(spec, cache_plan.n_pages + replays, placement, kind)
    limits = Limits(
        context_length=cache_plan.context_length,
        max_running=attn.max_running,
        max_waiting=attn.max_waiting,
        max_step_tokens=attn.max_step_tokens,
        page_size=PAGE_SIZE,
        lone_step_tokens=largest_step(attn, on_gpu=device.type == "cuda"),
    )
    pages = PageAllocator(cache_plan.n_pages)
    scheduler = Scheduler(limits, pages, prefix_cache=attn.prefix_cache)
    table = read_token_table(model.file.metadata)
    constraints = None if table is None else Constraints(GrammarCompiler(table))
    drawer = choose_drawer(placement.last, spec.vocab_size)
    graphs = None
    if hop is not None and replays:
        devices = tuple(stage.device for stage in placement.stages)
        rows = min(limits.max_running, limits.max_step_tokens)
        widest = InputShape(rows, limits.context_length, spec.hidden_size, dtype, pages.n_pages)
        graphs = StepGraphs(
            network,
            cache,
            hop,
            CudaRecorder(*devices),
            widest=widest,
            devices=devices,
            tracer=tracer or Tracer(),
            drawer=drawer,
        )
    seated = SeatedModel(network, pool.cpus[0]) if device.type == "cpu" else network
    runner = Runner(seated, cache, placement.first, hop, graphs, drawer=drawer)
    return Engine(
        scheduler,
        runner,
        spec.vocab_size,
        meter,
        constraints=constraints,
        tracer=tracer,
        caretaker=residents.caretaker(routed),
        draws_ahead=drawer is not None,
        on_close=residents.close,
        stop=stop,
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
