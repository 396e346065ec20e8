"""Which GPUs a configuration means, and how much of their memory."""

from __future__ import annotations

from dataclasses import dataclass

from trimaran.config import AttnConfig
from trimaran.errors import PlanError
from trimaran.machine import Machine
from trimaran.units import parse_bytes


@dataclass(frozen=True)
class Card:
    """A GPU to plan for: its number in cuda:N, its name, and the bytes that may be used."""

    number: int
    name: str
    memory: int


def find_cards(machine: Machine, config: AttnConfig) -> tuple[tuple[Card, ...], ...]:
    """The choices that there are, of which the first that fits is to be taken; empty: the CPU.

    Raises:
        PlanError: the configuration asks for a GPU that is not there.
    """
    if config.device == "cpu":
        return ()
    if config.device == "auto":
        cards = tuple(_card(machine, config, number) for number in range(len(machine.gpus)))
        return tuple(cards[:count] for count in range(1, len(cards) + 1))
    numbers = gpu_numbers(config.device)
    if max(numbers) >= len(machine.gpus):
        raise PlanError(
            f"attn.device is {config.device}, but this machine shows {len(machine.gpus)} GPUs",
            remedy="`trimaran doctor` tells what is missing; --device cpu needs none",
        )
    return (tuple(_card(machine, config, number) for number in numbers),)


def gpu_numbers(device: str) -> tuple[int, ...]:
    """Of `cuda`, `cuda:1`, or `cuda:0+cuda:1`.

    Raises:
        PlanError: a GPU is named twice.
    """
    numbers = tuple(int(name.partition(":")[2] or 0) for name in device.split("+"))
    if len(set(numbers)) < len(numbers):
        raise PlanError(f"attn.device is {device}: a GPU is named twice")
    return numbers


def _card(machine: Machine, config: AttnConfig, number: int) -> Card:
    gpu = machine.gpus[number]
    limit = gpu.memory if config.gpu_memory == "auto" else min(gpu.memory, parse_bytes(config.gpu_memory))
    return Card(number, gpu.name, limit)
