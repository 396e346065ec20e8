"""Which class, device and element type each module of the model gets: by its path and kind, and by choices.

The model asks for ``build("model.layers.3.self_attn.o_proj", LINEAR, shape)``. What a rules file chose for
the path decides, else the kind's default. Factories are registered by name, so a rules file can name them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from trimaran.errors import ConfigError
from trimaran.module_names import layer_of
from trimaran.rules import Choice
from trimaran.spec import ModelSpec

from trimaran_attn.placement import Placement
from trimaran_attn.weights import Shape, Weights

T = TypeVar("T")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What a module is for; `T` is the interface that all its implementations share."""

    name: str


@dataclass(frozen=True)
class Site:
    """All that a factory may need to build one module.

    Attributes:
        path: the module's path.
        shape: shape of its weight, when it has one; outermost first.
        device, dtype: where it computes, and in what element type.
    """

    path: str
    shape: Shape
    device: torch.device
    dtype: torch.dtype
    spec: ModelSpec
    weights: Weights
    registry: Registry

    @property
    def layer(self) -> int:
        """The layer that the module is in."""
        return layer_of(self.path)

    @property
    def runs_native(self) -> bool:
        """Whether the native kernels can serve the module: they compute in float32 on the CPU."""
        return self.device.type == "cpu" and self.dtype == torch.float32

    def child(self, name: str, kind: Kind[T], shape: Shape = ()) -> T:
        """Build the module `name` below this one."""
        return self.registry.build(f"{self.path}.{name}", kind, shape)


class Registry:
    """Builds modules.

    Args:
        spec, weights: the model.
        where, dtype: where and in what type modules compute unless a choice says otherwise.
        choices: what rules chose for modules, by path.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        where: torch.device | Placement,
        dtype: torch.dtype,
        choices: Mapping[str, Choice] | None = None,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._placement = Placement.on(where, spec.n_layers)
        self._dtype = dtype
        self._choices = choices or {}
        self._factories: dict[tuple[str, str], Callable[[Site], Any]] = {}
        self._defaults: dict[str, str] = {}

    def register(
        self, kind: Kind[T], name: str, factory: Callable[[Site], T], *, default: bool = False
    ) -> None:
        """Add an implementation of a kind; the first one, or the one marked so, is the default."""
        self._factories[kind.name, name] = factory
        if default or kind.name not in self._defaults:
            self._defaults[kind.name] = name

    def build(self, path: str, kind: Kind[T], shape: Shape = ()) -> T:
        """Build the module at `path`.

        Raises:
            ConfigError: an implementation is chosen that this kind does not have.
            ModelFileError: its tensors are missing or have another shape.
        """
        choice = self._choices.get(path)
        name = (choice and choice.implementation) or self._defaults[kind.name]
        factory = self._factories.get((kind.name, name))
        if factory is None:
            known = sorted(name for of, name in self._factories if of == kind.name)
            raise ConfigError(
                f"{path}: there is no {kind.name} {name!r}", remedy=f"one of {', '.join(known)}"
            )
        site = Site(
            path=path,
            shape=shape,
            device=self._placement.device_of(path),
            dtype=_DTYPES[choice.dtype] if choice and choice.dtype else self._dtype,
            spec=self._spec,
            weights=self._weights,
            registry=self,
        )
        module: T = factory(site)
        return module
