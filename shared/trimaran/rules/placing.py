"""Devices of modules to devices of layers.

A layer is on one device, layers of a device follow one another, and what comes after the last layer is with
it: that is what can be planned. Routed experts and the table of the embeddings stay in RAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from trimaran.errors import ConfigError
from trimaran.rules.choosing import Notices, Taken
from trimaran.rules.modules import Module
from trimaran.rules.rule import Rule


@dataclass(frozen=True)
class Placed:
    """Where rules put the model: values of `attn.device` and `attn.layers`.

    Attributes:
        rules: of each device the first rule that names it.
    """

    device: str
    layers: str
    rules: dict[str, Rule]


def place(taken: Taken, n_layers: int, notices: Notices) -> Placed | None:
    """None: no rule names a device.

    Raises:
        ConfigError: the devices are not ones that can be planned; it names the rules.
    """
    named: dict[int, tuple[Module, Rule]] = {}
    for module, rule in _located(taken, notices):
        layer = n_layers - 1 if module.layer is None else module.layer
        other = named.setdefault(layer, (module, rule))
        _check_same(module, rule, *other)
    if not named:
        _check_transfers(taken, {})
        return None
    rules: dict[str, Rule] = {}
    for _, rule in named.values():
        rules.setdefault(str(rule.device), rule)
    missing = [layer for layer in range(n_layers) if layer not in named]
    if len(rules) == 1:
        ((device, rule),) = rules.items()
        if missing and device != "cuda:0":  # where it would be anyway
            notices.add(
                rule, f"the whole model is on {device}: nothing gives layer {missing[0]} another device"
            )
        _check_transfers(taken, dict.fromkeys(range(n_layers), device))
        return Placed(device, "auto", rules)
    if missing:
        raise ConfigError(
            f"{next(iter(rules.values())).where.file}: no rule gives layer {missing[0]} a device, but others"
            " have one",
            remedy=f"let a rule match model.layers.{missing[0]}",
        )
    return _several(taken, n_layers, {layer: rule for layer, (_, rule) in named.items()}, rules)


def _located(taken: Taken, notices: Notices) -> Iterator[tuple[Module, Rule]]:
    """Modules whose rule says where their layer is."""
    kinds: dict[Rule, set[str]] = {}
    for module, rule in taken.items():
        kinds.setdefault(rule, set()).add(module.kind)
    for rule, met in kinds.items():
        if rule.device is not None and met <= {"model", "layer"} and rule.kinds != frozenset({"layer"}):
            notices.add(rule, "the device has no effect: no module that has weights took this rule")
    for module, rule in taken.items():
        if rule.device is None or module.kind == "model":
            continue
        if module.kind == "layer" and rule.kinds != frozenset({"layer"}):
            continue  # it has no weights of its own: nobody means it who does not say so
        if module.kind == "embedding":
            if rule.device != "cpu":
                notices.add(
                    rule, "the device has no effect: rows of the embeddings are read from the mapped file"
                )
            continue
        # The out_device of KTransformers' experts is their layer's.
        is_layers = rule.lenient and rule.serves == frozenset({"experts"})
        if module.kind == "experts" and kinds[rule] == {"experts"} and not is_layers:
            if rule.device != "cpu":
                raise rule.where.error(
                    f"replace.device is {rule.device}: a layer's routed experts are in RAM",
                    "leave it out; attn.gpu_experts: auto puts those that are used most on the GPUs",
                )
            continue
        if module.kind == "experts" and rule.device == "cpu":
            continue
        yield module, rule


def _check_same(module: Module, rule: Rule, other: Module, earlier: Rule) -> None:
    if rule.device == earlier.device:
        return
    raise rule.where.error(
        f"{module.path} is given {rule.device},"
        f" but {other.path} {earlier.device} by rule {earlier.where.number}",
        "a layer is on one device, and model.norm and lm_head are with the last one",
    )


def _several(taken: Taken, n_layers: int, named: dict[int, Rule], rules: dict[str, Rule]) -> Placed:
    """Each layer on the one of several devices that it is given."""
    if "cpu" in rules:
        raise rules["cpu"].where.error(
            "some layers are given cpu and others a GPU, which cannot be planned",
            "give all layers GPUs, which need not hold the routed experts, or all of them cpu",
        )
    devices = {layer: str(named[layer].device) for layer in range(n_layers)}
    _check_transfers(taken, devices)
    parts = [(device, list(layers)) for device, layers in groupby(devices, devices.__getitem__)]
    if len(parts) > len(rules):
        again = next(device for index, (device, _) in enumerate(parts) if device in dict(parts[:index]))
        raise rules[again].where.error(
            f"{again} has layers that do not follow one another", "give each device one range of layers"
        )
    ranges = ",".join(f"{layers[0]}-{layers[-1]}" for _, layers in parts)
    return Placed("+".join(device for device, _ in parts), ranges, rules)


def _check_transfers(taken: Taken, devices: dict[int, str]) -> None:
    for rule in set(taken.values()):
        for layer, device in rule.transfers:
            if devices.get(layer) != device:
                raise rule.where.error(
                    f"transfer_map says that layer {layer} is on {device}, but other rules give it"
                    f" {devices.get(layer, 'no device')}",
                    "make them agree",
                )
