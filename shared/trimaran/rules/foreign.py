"""`replace` of KTransformers' form: a class and its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as changed
from typing import Any

from trimaran.rules.ktransformers import (
    EXPERT_BACKENDS,
    EXPERT_OPS,
    LINEAR_OPS,
    REPLACE_CLASSES,
    WITHOUT_EFFECT,
)
from trimaran.rules.rule import Rule, Where
from trimaran.rules.values import read_device, read_name, refuse_unknown, shown

DEFAULT = "default"
_DEVICES = ("generate_device", "prefill_device", "out_device")
_OPS = ("generate_op", "prefill_op")
_KWARGS = frozenset({*_DEVICES, *_OPS, "absorb_for_prefill", "transfer_map", *WITHOUT_EFFECT})
_SERVICE_OP = "KExpertsCPU"
_MAX_LAYER = 1 << 16

Kwargs = Mapping[str, Any]


def read_replacement(replace: Mapping[str, Any], rule: Rule) -> Rule:
    """The rule with what `replace` gives.

    Raises:
        ConfigError: a class, an argument or a value is not known.
    """
    where = rule.where
    refuse_unknown(replace, ("class", "kwargs"), where, "replace.")
    title = read_name(replace.get("class", DEFAULT), (DEFAULT, *REPLACE_CLASSES), where, "replace.class")
    kwargs = replace.get("kwargs") or {}
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise where.error(f"replace.kwargs is {shown(kwargs)}", "it is a mapping of arguments to values")
    refuse_unknown(kwargs, _KWARGS, where, "replace.kwargs.")
    serves = REPLACE_CLASSES.get(title)
    rule = changed(rule, serves=serves, title=title.rpartition(".")[2], notices=_idle(kwargs))
    if serves is not None and "experts" in serves:
        return _experts(kwargs, rule)
    rule = _with_device(kwargs, rule)
    if serves is not None and "linear" in serves:
        return _linear(kwargs, rule)
    if serves is not None and "attention" in serves:
        rule = _attention(kwargs, rule)
    if serves is not None and "model" in serves and "transfer_map" in kwargs:
        rule = changed(rule, transfers=_transfers(kwargs["transfer_map"], where))
    return _without_ops(kwargs, rule)


def _idle(kwargs: Kwargs) -> tuple[str, ...]:
    """Arguments that no module has a use for."""
    return tuple(f"{name} has no effect: {why}" for name, why in WITHOUT_EFFECT.items() if name in kwargs)


def _device(kwargs: Kwargs, name: str, where: Where) -> str | None:
    return read_device(kwargs[name], where, f"replace.kwargs.{name}") if name in kwargs else None


def _with_device(kwargs: Kwargs, rule: Rule) -> Rule:
    """The one device of a module that is in one place."""
    generate, prefill, out = (_device(kwargs, name, rule.where) for name in _DEVICES)
    given = list(dict.fromkeys(device for device in (generate, prefill) if device is not None))
    notices = list(rule.notices)
    gpus = [device for device in given if device != "cpu"]
    if len(gpus) > 1:
        raise rule.where.error(
            f"generate_device is {generate}, prefill_device is {prefill}: a module is on one GPU",
            "name the same one in both",
        )
    device = next(iter(gpus or given), None)
    if len(given) > 1:
        notices.append("generate_device and prefill_device differ: the module is on the GPU for both")
    if out is not None and out != device:
        notices.append("out_device has no effect: results go where the next module is")
    return changed(rule, device=device, notices=tuple(notices))


def _linear(kwargs: Kwargs, rule: Rule) -> Rule:
    names = {
        name: read_name(kwargs[name], LINEAR_OPS, rule.where, f"replace.kwargs.{name}")
        for name in _OPS
        if name in kwargs
    }
    generate, prefill = names.get("generate_op"), names.get("prefill_op")
    op = generate or prefill
    implementation = None if op is None else LINEAR_OPS[op]
    notices = list(rule.notices)
    if generate and prefill and LINEAR_OPS[generate] != LINEAR_OPS[prefill]:
        notices.append(f"prefill_op {prefill} has no effect: generate_op's implementation serves both")
    if "KLinearFP8" in (generate, prefill):
        notices.append("KLinearFP8 stands for the file's own encoding: weights are not encoded anew")
    rule = changed(rule, implementation=implementation, notices=tuple(notices))
    for name in ("absorb_for_prefill", "transfer_map"):
        rule = _without(name, kwargs, rule)
    return rule


def _experts(kwargs: Kwargs, rule: Rule) -> Rule:
    where = rule.where
    generate, prefill, out = (_device(kwargs, name, where) for name in _DEVICES)
    for name in _OPS:
        if name in kwargs:
            read_name(kwargs[name], EXPERT_OPS, where, f"replace.kwargs.{name}")
    if "backend" in kwargs:
        read_name(kwargs["backend"], EXPERT_BACKENDS, where, "replace.kwargs.backend")
    if generate not in (None, "cpu"):
        raise where.error(
            f"replace.kwargs.generate_device is {generate}: a layer's routed experts are in RAM",
            "write generate_device: cpu; attn.gpu_experts: auto puts those that are used most on the GPUs",
        )
    for name in ("absorb_for_prefill", "transfer_map"):
        rule = _without(name, kwargs, rule)
    notices = list(rule.notices)
    if prefill not in (None, "cpu"):
        notices.append(
            "prefill_device has no effect on routed experts: the expert service computes them;"
            " attn.stream_prefill: auto lets a GPU take a part of long prompts"
        )
    notices += [
        f"{name} {kwargs[name]} has no effect: the expert service has its own kernels"
        for name in _OPS
        if kwargs.get(name, _SERVICE_OP) != _SERVICE_OP
    ]
    return changed(rule, implementation="service", device=out, notices=tuple(notices))


def _attention(kwargs: Kwargs, rule: Rule) -> Rule:
    """KTransformers computes prompts in the naive form unless it is told to absorb; `auto` compares costs."""
    absorb = kwargs.get("absorb_for_prefill")
    if absorb is None:
        return rule
    if not isinstance(absorb, bool):
        raise rule.where.error(f"replace.kwargs.absorb_for_prefill is {shown(absorb)}", "it is true or false")
    return changed(rule, implementation="absorbed" if absorb else "auto")


def _transfers(value: object, where: Where) -> tuple[tuple[int, str], ...]:
    field = "replace.kwargs.transfer_map"
    if not isinstance(value, dict):
        raise where.error(f"{field} is {shown(value)}", "it is a mapping of layers to devices")
    for layer in value:
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer < _MAX_LAYER:
            raise where.error(f"{field} names the layer {shown(layer)}", "layers are whole numbers from 0 on")
    return tuple((layer, read_device(device, where, f"{field}.{layer}")) for layer, device in value.items())


def _without_ops(kwargs: Kwargs, rule: Rule) -> Rule:
    names = [*_OPS]
    if "attention" not in (rule.serves or ()):
        names.append("absorb_for_prefill")
    if "model" not in (rule.serves or ()):
        names.append("transfer_map")
    for name in names:
        rule = _without(name, kwargs, rule)
    return rule


def _without(name: str, kwargs: Kwargs, rule: Rule) -> Rule:
    """A notice that this class has no use for an argument, if it is given."""
    if name not in kwargs:
        return rule
    return changed(rule, notices=(*rule.notices, f"{name} has no effect on {rule.title}"))
