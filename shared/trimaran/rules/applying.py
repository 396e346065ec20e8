"""What the rules of a configuration come to for one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from msgspec.structs import replace

from trimaran.config import AttnConfig, Config
from trimaran.cpu_weights import packed_bytes
from trimaran.errors import ConfigError
from trimaran.gguf import TensorInfo
from trimaran.gpu_weights import gpu_bytes
from trimaran.model_tensors import with_head
from trimaran.module_names import tensor_name
from trimaran.rules.choosing import Choice, Notices, choices_of, take_rules
from trimaran.rules.modules import IMPLEMENTATIONS, modules_of
from trimaran.rules.placing import Placed, place
from trimaran.rules.reading import read_rules
from trimaran.spec import ModelSpec

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Chosen:
    """A configuration with the devices that its rules name, and what they give each module.

    Attributes:
        config: with `attn.device` and `attn.layers` as the rules say.
        choices: by module path; those without a rule are not in it.
        notices: what of the rules has no effect, one sentence each.
        on_gpu: whether the model is on GPUs.
    """

    config: Config
    choices: Mapping[str, Choice] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    on_gpu: bool = False

    def held(self, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
        """Bytes in memory of the matrices whose form a rule chose, by tensor."""
        tensors, found = with_head(tensors), {}
        for path, choice in self.choices.items():
            info = (
                tensors.get(tensor_name(path)) if choice.implementation in IMPLEMENTATIONS["linear"] else None
            )
            if info is not None:
                found[info.name] = _bytes(info, choice, on_gpu=self.on_gpu)
        return found


def apply_rules(config: Config, spec: ModelSpec, n_gpus: int | None, *, any_gpu: bool = False) -> Chosen:
    """Read the rules file of a configuration, if it has one, and choose for each module.

    Args:
        config: `attn.rules`, `device`, `layers`, `replicas`.
        spec: the model.
        n_gpus: that there are; None: as many as are named.
        any_gpu: whether rules may name GPUs that are not there.

    Raises:
        ConfigError: the file is wrong, contradicts itself or the configuration, asks for what cannot be
            planned, or for a GPU that is not there.
    """
    if config.attn.rules is None:
        return Chosen(config)
    file = Path(config.attn.rules)
    rules = read_rules(file)
    notices = Notices(file.name)
    taken = take_rules(rules, modules_of(spec), notices)
    placed = place(taken, spec.n_layers, notices)
    if placed is not None:
        _check_gpus(placed, None if any_gpu else n_gpus)
        config = replace(config, attn=_merged(config.attn, placed, file))
    device = config.attn.device
    on_gpu = n_gpus != 0 if device == "auto" else device != "cpu"
    choices = choices_of(taken, notices, on_gpu=on_gpu)
    return Chosen(config, choices, notices.sentences(), on_gpu)


def _check_gpus(placed: Placed, n_gpus: int | None) -> None:
    for device, rule in placed.rules.items():
        number = int(device.partition(":")[2] or -1)
        if n_gpus is not None and number >= n_gpus:
            there = f"{n_gpus or 'no'} GPU{'s are' if n_gpus > 1 else ' is'} usable here"
            remedy = (
                f"name cuda:0 to cuda:{n_gpus - 1}" if n_gpus > 1 else "name cuda:0" if n_gpus else "name cpu"
            )
            raise rule.where.error(f"it names {device}, but {there}", f"{remedy}, or leave the devices out")


def _merged(attn: AttnConfig, placed: Placed, file: Path) -> AttnConfig:
    """The configuration with the rules' devices, unless it says something else."""
    if attn.replicas:
        raise ConfigError(
            f"{file.name} names devices, and so does attn.replicas", remedy="leave them out of the rules"
        )
    named = "+".join("cuda:0" if device == "cuda" else device for device in attn.device.split("+"))
    if named not in ("auto", placed.device):
        raise ConfigError(
            f"attn.device is {attn.device}, but {file.name} puts the model on {placed.device}",
            remedy="leave attn.device and --device out, or take the devices out of the rules",
        )
    if attn.layers not in ("auto", placed.layers) and placed.layers != "auto":
        raise ConfigError(
            f"attn.layers is {attn.layers}, but {file.name} says {placed.layers}",
            remedy="leave attn.layers out, or take the devices out of the rules",
        )
    layers = attn.layers if placed.layers == "auto" else placed.layers
    return replace(attn, device=placed.device, layers=layers)


def _bytes(info: TensorInfo, choice: Choice, *, on_gpu: bool) -> int:
    """A matrix in the form that was chosen."""
    match choice.implementation:
        case "dense":
            return prod(info.shape) * _WIDTHS[choice.dtype or ("bfloat16" if on_gpu else "float32")]
        case "packed":
            return packed_bytes(info)
        case "gpu":
            return gpu_bytes(info)
        case _:
            return info.nbytes
