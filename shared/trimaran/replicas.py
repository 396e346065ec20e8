"""Several attention services on one expert service: `attn.replicas` names the device of each."""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from trimaran.config import Config
from trimaran.errors import ConfigError


def replicas(config: Config) -> range:
    """The numbers of the attention services that there are."""
    return range(max(1, len(config.attn.replicas)))


def for_replica(config: Config, number: int) -> Config:
    """The configuration as one of the attention services sees it: with its own device.

    Raises:
        ConfigError: there is no such one, or a GPU is to serve two.
    """
    if number not in replicas(config):
        raise ConfigError(
            f"attn.replica is {number}, but there are {len(replicas(config))} attention services",
            remedy="attn.replicas names their devices; they count from 0",
        )
    if not config.attn.replicas:
        return config
    _refuse_shared_gpus(config.attn.replicas)
    device = config.attn.replicas[number]
    return replace(config, attn=replace(config.attn, device=device, replica=number))


def services_in_ram(config: Config) -> int:
    """How many attention services hold their weights and caches in RAM, if one on the CPU does."""
    return max(1, sum(device == "cpu" for device in config.attn.replicas))


def on_the_cpu(config: Config) -> Config | None:
    """The configuration of the first attention service on the CPU beside others on GPUs; None without one."""
    devices = config.attn.replicas
    return for_replica(config, devices.index("cpu")) if "cpu" in devices else None


def _refuse_shared_gpus(devices: tuple[str, ...]) -> None:
    """Each service plans with the whole of its GPUs."""
    uses = Counter(gpu for device in devices if device != "cpu" for gpu in device.split("+"))
    uses["cuda:0"] += uses.pop("cuda", 0)
    twice = [gpu for gpu, count in uses.items() if count > 1]
    if twice:
        raise ConfigError(
            f"attn.replicas names {twice[0]} twice", remedy="one service on each GPU; it batches its requests"
        )
