"""Which rule each module takes: the first that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimaran.rules.matching import find_matches
from trimaran.rules.modules import IMPLEMENTATIONS, ON_CPU, ON_GPU, Module
from trimaran.rules.rule import Rule


@dataclass(frozen=True)
class Choice:
    """What a rule gives one module; None leaves the default.

    Attributes:
        rule: its number, from 1.
        implementation: a name of `IMPLEMENTATIONS`.
        dtype: element type of an expanded matrix.
    """

    rule: int
    implementation: str | None = None
    dtype: str | None = None


Taken = Mapping[Module, Rule]


class Notices:
    """Sentences about rules; those that say the same become one."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._numbers: dict[str, list[int]] = {}

    def add(self, rule: Rule, text: str) -> None:
        """Tell about a rule, once."""
        numbers = self._numbers.setdefault(text, [])
        if rule.where.number not in numbers:
            numbers.append(rule.where.number)

    def sentences(self) -> tuple[str, ...]:
        """One for each thing to tell."""
        return tuple(
            f"{self._file}: rule{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: {text}"
            for text, numbers in self._numbers.items()
        )


def take_rules(rules: Sequence[Rule], modules: Sequence[Module], notices: Notices) -> Taken:
    """The rule of each module that has one.

    Args:
        rules: in order.
        modules: each before those below it.
        notices: told of rules that nothing takes, and of what of the others has no effect.

    Raises:
        ConfigError: a rule fits a module that cannot take what it gives, or its pattern takes too long.
    """
    matches = find_matches(rules, [module.path for module in modules])
    closed: set[str] = set()
    taken: dict[Module, Rule] = {}
    for index, module in enumerate(modules):
        if _is_below(module.path, closed):
            continue
        rule = next(
            (r for r, found in zip(rules, matches, strict=True) if _fits(r, module, index, found)), None
        )
        if rule is None:
            continue
        _check_kind(rule, module)
        taken[module] = rule
        if not rule.recursive:
            closed.add(module.path)
    _tell(rules, taken, notices)
    return taken


def choices_of(taken: Taken, notices: Notices, *, on_gpu: bool) -> dict[str, Choice]:
    """What each module gets, by path.

    Raises:
        ConfigError: an implementation is for another kind of device than the model is on.
    """
    choices = {}
    for module, rule in taken.items():
        implementation = rule.implementation
        if module.kind == "maps" and implementation is not None:
            notices.add(rule, "kv_b_proj is part of the attention, which expands it: a kernel has no effect")
            implementation = None
        elsewhere = ON_CPU if on_gpu else ON_GPU
        there = [name for name in IMPLEMENTATIONS[module.kind] if name not in elsewhere]
        if implementation in elsewhere and there:  # else it is the only one, wherever the model is
            place = "a GPU" if on_gpu else "the CPU"
            if not rule.lenient:
                raise rule.where.error(
                    f"replace.implementation is {implementation}, but {module.path} is on {place}",
                    f"there: {', '.join(there)}",
                )
            notices.add(rule, f"its kernel ({implementation}) is not one of {place}: the default is taken")
            implementation = None
        choices[module.path] = Choice(rule.where.number, implementation, rule.dtype)
    return choices


def _fits(rule: Rule, module: Module, index: int, found: frozenset[int]) -> bool:
    return (rule.kinds is None or module.kind in rule.kinds) and index in found


def _is_below(path: str, closed: set[str]) -> bool:
    return any(path.startswith(f"{above}.") for above in closed)


def _check_kind(rule: Rule, module: Module) -> None:
    if rule.serves is None or module.kind in rule.serves:
        return
    kinds = " or ".join(sorted(rule.serves))
    raise rule.where.error(
        f"it fits {module.path}, of kind {module.kind}, but {rule.title} is for kind {kinds}",
        "narrow match.name" if rule.lenient else f"add kind: {sorted(rule.serves)[-1]} to match",
    )


def _tell(rules: Sequence[Rule], taken: Taken, notices: Notices) -> None:
    used = {rule.where.number for rule in taken.values()}
    for rule in rules:
        if rule.where.number not in used:
            notices.add(rule, "no module takes it: nothing matches, or an earlier rule comes first")
            continue
        for text in rule.notices:
            notices.add(rule, text)
