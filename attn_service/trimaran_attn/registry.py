"""Which class, device and element type each module of the model gets: by its path and kind, and by rules.

The model asks for ``build("model.layers.3.self_attn.o_proj", LINEAR, shape)``; the first rule that fits the
path chooses, else the kind's default. Factories are registered by name, so a rules file can name them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from trimaran.errors import ConfigError
from trimaran.spec import ModelSpec

from trimaran_attn.names import layer_of
from trimaran_attn.placement import Placement
from trimaran_attn.weights import Shape, Weights

T = TypeVar("T")


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What a module is for; `T` is the interface that all its implementations share."""

    name: str


@dataclass(frozen=True)
class Rule:
    """Applies to module paths in which `pattern` is found. None leaves a choice as it was.

    Attributes:
        pattern: regular expression.
        kind: only modules of this kind, e.g. "linear".
        implementation: a registered name, e.g. "dense".
    """

    pattern: str
    kind: str | None = None
    implementation: str | None = None
    device: torch.device | None = None
    dtype: torch.dtype | None = None

    def fits(self, path: str, kind: str) -> bool:
        """Whether the rule speaks about this module."""
        return self.kind in (None, kind) and re.search(self.pattern, path) is not None


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
        where, dtype: where and in what type modules compute unless a rule says otherwise.
        rules: the first that fits a module decides.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        where: torch.device | Placement,
        dtype: torch.dtype,
        rules: tuple[Rule, ...] = (),
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._placement = Placement.on(where, spec.n_layers)
        self._dtype = dtype
        self._rules = rules
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
            ConfigError: a rule names an implementation that this kind does not have.
            ModelFileError: its tensors are missing or have another shape.
        """
        rule = next((rule for rule in self._rules if rule.fits(path, kind.name)), Rule(""))
        name = rule.implementation or self._defaults[kind.name]
        factory = self._factories.get((kind.name, name))
        if factory is None:
            known = sorted(name for of, name in self._factories if of == kind.name)
            raise ConfigError(
                f"{path}: there is no {kind.name} {name!r}", remedy=f"one of {', '.join(known)}"
            )
        site = Site(
            path=path,
            shape=shape,
            device=rule.device or self._placement.device_of(path),
            dtype=rule.dtype or self._dtype,
            spec=self._spec,
            weights=self._weights,
            registry=self,
        )
        module: T = factory(site)
        return module
