"""The plan, from the model, the machine and the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trimaran.config import AttnConfig, Config
from trimaran.errors import ConfigError, PlanError
from trimaran.gguf import TensorInfo
from trimaran.kv_format import choose_format, entry_bytes
from trimaran.machine import Machine
from trimaran.plan.cache import cache_bytes, choose_context
from trimaran.plan.devices import Card, find_cards, gpu_numbers
from trimaran.plan.experts import room_for_experts
from trimaran.plan.placement import parse_layers, place_layers
from trimaran.plan.report import Bandwidth, Budget, GpuShare, Item, Place, Plan, Speed
from trimaran.plan.sizes import GPU_RESERVE, RAM_RESERVE
from trimaran.plan.weights import Form, Weights, weigh
from trimaran.plan.workspace import cpu_workspace, gpu_workspace
from trimaran.replicas import on_the_cpu, services_in_ram
from trimaran.spec import ModelSpec

_TILES = frozenset({"amx", "avx512_vnni", "avx512_bf16"})  # with them `exact` packs routed experts too


def make_plan(
    spec: ModelSpec,
    tensors: Mapping[str, TensorInfo],
    machine: Machine,
    config: Config,
    bandwidth: Bandwidth | None = None,
    *,
    held: Mapping[str, int] | None = None,
) -> Plan:
    """Plans a model on a machine.

    With `attn.device: auto` the first GPU is taken, and further ones only if it takes them to fit.

    Args:
        spec: the model's dimensions.
        tensors: its tensor directory, by name.
        machine: what is there; `memory.limit` and `gpus` count.
        config: `precision`, `attn.device`, `layers`, `gpu_memory`, `context_length`, `kv_memory`, `kv_dtype`,
            `max_step_tokens`, `lone_step_tokens`, `max_running`, `replicas`, `experts.store`. With replicas
            GPU memory is planned for the one of `attn.device`, RAM for all of them.
        bandwidth: for the prediction of speed.
        held: bytes in memory of the matrices whose form rules chose, by tensor.

    Raises:
        PlanError: the configuration asks for a GPU that is not there.
        ConfigError: `attn.layers` does not fit the model or the devices.
    """
    choices = _choices(machine, config.attn)
    exact = config.precision == "exact"
    form = Form(
        on_gpu=bool(choices),
        exact=exact,
        packs_experts=config.experts.store != "off" and (not exact or _TILES.issubset(machine.isas)),
        held=held or {},
    )
    entry = entry_bytes(spec, choose_format(config.attn.kv_dtype, exact=exact and not choices))
    planner = _Planner(spec, config, weigh(spec, tensors, form), entry, machine.memory.limit)
    speed = _speed(spec, planner.weights.items, bandwidth or Bandwidth())
    if not choices:
        return planner.on_cpu(speed)
    plan = planner.on_gpus(choices[0], speed)
    for cards in choices[1:]:
        if all(share.budget.spare >= 0 for share in plan.gpus):
            break
        plan = planner.on_gpus(cards, speed)
    beside = on_the_cpu(config)
    if beside is None:
        return plan
    return replace(plan, ram=make_plan(spec, tensors, machine, beside, held=held).ram)


def _choices(machine: Machine, attn: AttnConfig) -> tuple[tuple[Card, ...], ...]:
    """The sets of cards that may be used; with `attn.layers` given those of its number, if there are any."""
    choices = find_cards(machine, attn)
    if not choices and attn.layers != "auto":
        raise ConfigError(
            f"attn.layers is {attn.layers}, but attention runs on the CPU", remedy="it is for several GPUs"
        )
    if attn.device != "auto" or attn.layers == "auto":
        return choices
    count = attn.layers.count(",") + 1
    return tuple(cards for cards in choices if len(cards) == count) or choices[:1]


def check_plan(plan: Plan) -> None:
    """Refuses a plan that cannot work.

    Raises:
        PlanError: with the sentences of `Plan.problems`.
    """
    problems = plan.problems()
    if problems:
        raise PlanError(f"{plan.model} does not fit. " + "; ".join(problems))


@dataclass(frozen=True)
class _Planner:
    """A model and its weights, ready to be planned for several choices of devices.

    Attributes:
        entry: bytes of the cache per token and layer.
        ram: bytes that there are.
    """

    spec: ModelSpec
    config: Config
    weights: Weights
    entry: int
    ram: int

    @property
    def kv_per_token(self) -> int:
        """Over all layers."""
        return self.spec.n_layers * self.entry

    @property
    def wanted(self) -> int:
        """Tokens."""
        return self.config.attn.context_length or self.spec.context_length

    def on_cpu(self, speed: Speed) -> Plan:
        """Everything in RAM."""
        experts = room_for_experts(self.config.attn, spare=0)
        services = services_in_ram(self.config)
        fixed = (
            self.weights.total("RAM") + self.weights.copied * (services - 1) + self._staged(0) + RAM_RESERVE
        )

        def needed(tokens: int) -> int:
            return fixed + services * (experts + sum(self._in_ram(tokens)))

        context = choose_context(self.config.attn, self.wanted, lambda tokens: needed(tokens) <= self.ram)
        ram = Budget(needed(context), self.ram)
        return self._plan(context, self._in_ram(context), ram, speed, experts=experts)

    def on_gpus(self, cards: Sequence[Card], speed: Speed) -> Plan:
        """The layers on GPUs, the experts and the embeddings in RAM."""

        def fits(tokens: int) -> bool:
            return all(share.budget.spare >= 0 for share in self._shares(cards, tokens))

        context = choose_context(self.config.attn, self.wanted, fits)
        shares = self._shares(cards, context)
        sums = sum(share.kv_bytes for share in shares), sum(share.workspace for share in shares)
        ram = Budget(self.weights.total("RAM") + RAM_RESERVE + self._staged(len(cards)), self.ram)
        experts = sum(share.experts for share in shares)
        return self._plan(context, sums, ram, speed, shares, experts=experts)

    def _staged(self, cards: int) -> int:
        """Host memory through which experts stream to all GPUs: those of all replicas, or so many cards."""
        if self.config.attn.stream_prefill != "auto":
            return 0
        devices = self.config.attn.replicas
        gpus = sum(len(gpu_numbers(device)) for device in devices if device != "cpu")
        return self.weights.staged * (gpus if devices else cards)

    def _in_ram(self, tokens: int) -> tuple[int, int]:
        """Cache and workspace."""
        kv_bytes = cache_bytes(self.config.attn, tokens, self.kv_per_token)
        return kv_bytes, cpu_workspace(self.spec, self.config.attn, tokens)

    def _shares(self, cards: Sequence[Card], context: int) -> tuple[GpuShare, ...]:
        """Each GPU's layers, and what they take."""
        attn, n_layers = self.config.attn, self.spec.n_layers
        kv_bytes = cache_bytes(attn, context, self.kv_per_token)
        kv_layer = -(-kv_bytes // n_layers)
        alone = len(cards) == 1
        workspaces = [
            gpu_workspace(self.spec, attn, has_head=card is cards[-1], alone=alone) for card in cards
        ]
        if attn.stream_prefill == "auto":
            workspaces = [used + self.weights.stream for used in workspaces]
        if attn.layers == "auto":
            loads = [nbytes + kv_layer for nbytes in self.weights.layers]
            rooms = [c.memory - GPU_RESERVE - used for c, used in zip(cards, workspaces, strict=True)]
            ranges = place_layers(loads, self.weights.head, rooms)
        else:
            ranges = parse_layers(attn.layers, n_layers, len(cards))
        return tuple(
            self._share(card, layers, kv_layer, workspace, has_head=card is cards[-1])
            for card, layers, workspace in zip(cards, ranges, workspaces, strict=True)
        )

    def _share(self, card: Card, layers: range, kv_layer: int, workspace: int, *, has_head: bool) -> GpuShare:
        weights = sum(self.weights.layers[layer] for layer in layers)
        weights += self.weights.head if has_head else 0
        kv_bytes = kv_layer * len(layers)
        needed = weights + kv_bytes + workspace + GPU_RESERVE
        experts = room_for_experts(self.config.attn, spare=card.memory - needed)
        return GpuShare(
            number=card.number,
            name=card.name,
            first_layer=layers[0],
            last_layer=layers[-1],
            weights=weights,
            kv_bytes=kv_bytes,
            workspace=workspace,
            kv_per_token=self.entry * len(layers),
            experts=experts,
            budget=Budget(needed + experts, card.memory),
        )

    def _plan(
        self,
        context: int,
        attention: tuple[int, int],
        ram: Budget,
        speed: Speed,
        shares: tuple[GpuShare, ...] = (),
        *,
        experts: int,
    ) -> Plan:
        needed = sum(share.budget.needed for share in shares)
        available = sum(share.budget.available for share in shares)
        return Plan(
            model=self.spec.name,
            device=" + ".join(f"cuda:{share.number} ({share.name})" for share in shares) or "cpu",
            items=self.weights.items,
            skipped=self.weights.skipped,
            kv_per_token=self.kv_per_token,
            context=context,
            wanted_context=self.wanted,
            kv_bytes=attention[0],
            workspace=attention[1],
            gpu=Budget(needed, available) if shares else None,
            gpus=shares,
            ram=ram,
            services_in_ram=services_in_ram(self.config),
            re_encoded=self.weights.re_encoded,
            speed=speed,
            experts=experts,
        )


def _speed(spec: ModelSpec, items: tuple[Item, ...], bandwidth: Bandwidth) -> Speed:
    """Bytes of weights that one token reads: everything dense once, and `top_k` experts of each layer."""
    read: dict[Place, int] = {"GPU": 0, "RAM": 0}
    for item in items:
        if item.part == "routed experts":
            read[item.place] += item.nbytes * spec.moe.top_k // spec.moe.n_experts
        elif item.part != "embeddings":
            read[item.place] += item.nbytes
    ram_s = read["RAM"] / bandwidth.ram if bandwidth.ram else None
    gpu_s = read["GPU"] / bandwidth.gpu if bandwidth.gpu else None
    if ram_s is None or (gpu_s is None and read["GPU"]):
        return Speed(read["RAM"], read["GPU"], None)
    return Speed(read["RAM"], read["GPU"], 1 / (ram_s + (gpu_s or 0.0)))
