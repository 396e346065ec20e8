"""Every module of a model with what it gets, for people to read."""

from __future__ import annotations

from dataclasses import dataclass

from trimaran.config import AttnConfig, Config
from trimaran.rules.applying import Chosen
from trimaran.rules.modules import IMPLEMENTATIONS, MATRICES, Module, modules_of
from trimaran.spec import ModelSpec


@dataclass(frozen=True)
class ModuleRow:
    """A module. rule: its number, from 1, or None; device: `by plan` where the plan decides."""

    path: str
    kind: str
    rule: int | None
    implementation: str
    device: str
    dtype: str


def module_rows(chosen: Chosen, spec: ModelSpec) -> tuple[ModuleRow, ...]:
    """All modules of the model, each before those below it."""
    return tuple(_row(module, chosen, spec) for module in modules_of(spec))


def _row(module: Module, chosen: Chosen, spec: ModelSpec) -> ModuleRow:
    choice = chosen.choices.get(module.path)
    implementation = choice and choice.implementation
    return ModuleRow(
        path=module.path,
        kind=module.kind,
        rule=None if choice is None else choice.rule,
        implementation=implementation or _default(module.kind, chosen.config, on_gpu=chosen.on_gpu),
        device=_device(module, chosen, spec),
        dtype=(choice and choice.dtype) or "",
    )


def _default(kind: str, config: Config, *, on_gpu: bool) -> str:
    """What modules of a kind are made of where no rule says it; empty for parts of other modules."""
    if kind in MATRICES:
        return "gpu" if on_gpu else "packed" if config.precision == "int8" else "quantised"
    return config.attn.mla if kind == "attention" else next(iter(IMPLEMENTATIONS[kind]), "")


def _device(module: Module, chosen: Chosen, spec: ModelSpec) -> str:
    if module.kind == "model":
        return ""
    if module.kind in {"experts", "embedding"} or not chosen.on_gpu:
        return "cpu"
    layer = spec.n_layers - 1 if module.layer is None else module.layer
    return _gpu_of(layer, chosen.config.attn)


def _gpu_of(layer: int, attn: AttnConfig) -> str:
    gpus = attn.device.split("+")
    if len(gpus) == 1 and attn.device != "auto":
        return attn.device
    if attn.device == "auto" or attn.layers == "auto":
        return "by plan"
    lasts = [int(part.partition("-")[2]) for part in attn.layers.split(",")]
    return next(gpu for gpu, last in zip(gpus, lasts, strict=True) if layer <= last)
