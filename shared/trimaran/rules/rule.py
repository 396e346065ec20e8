"""One rule, as it was read."""

from __future__ import annotations

from dataclasses import dataclass

from trimaran.errors import ConfigError


@dataclass(frozen=True)
class Where:
    """A place in a rules file, for messages."""

    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}: rule {self.number}"

    def error(self, text: str, remedy: str = "") -> ConfigError:
        """An error at this place."""
        return ConfigError(f"{self}: {text}", remedy=remedy)


@dataclass(frozen=True)
class Rule:
    """Says what the modules that it fits get. None leaves a choice as it was.

    Attributes:
        where: its file and number.
        pattern: regular expression, searched in the path.
        kinds: only modules of these kinds.
        serves: what it gives can only be given to these kinds; None: to all.
        title: what the file calls that, for messages.
        implementation: a name of `IMPLEMENTATIONS`.
        device: `cpu` or `cuda:N`.
        dtype: element type of an expanded matrix.
        transfers: (layer, device): from there on the model is said to be on that device.
        recursive: whether rules are tried on the modules below, too.
        lenient: an implementation that the device does not have is left out, with a notice.
        notices: what of the rule has no effect.
    """

    where: Where
    pattern: str | None = None
    kinds: frozenset[str] | None = None
    serves: frozenset[str] | None = None
    title: str = ""
    implementation: str | None = None
    device: str | None = None
    dtype: str | None = None
    transfers: tuple[tuple[int, str], ...] = ()
    recursive: bool = True
    lenient: bool = False
    notices: tuple[str, ...] = ()
