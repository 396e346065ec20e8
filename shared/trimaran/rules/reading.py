"""A rules file to rules. A mistake is one line with the file, the number, the field and a remedy.

A file may mix rules of KTransformers' form with those of the short one.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from trimaran.errors import ConfigError
from trimaran.rules.foreign import read_replacement
from trimaran.rules.ktransformers import MATCH_CLASSES
from trimaran.rules.modules import IMPLEMENTATIONS, MATRICES
from trimaran.rules.rule import Rule, Where
from trimaran.rules.values import DTYPES, read_device, read_name, refuse_unknown, shown
from trimaran.yaml_file import compose, construct

MAX_RULES = 1000
MAX_PATTERN = 500
_DEPTH = 8
_SHORT = frozenset({"implementation", "device", "dtype"})
_FOREIGN = frozenset({"class", "kwargs"})


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a file, in order.

    Raises:
        ConfigError: anything in it is wrong.
    """
    root = compose(path, what="rules file", remedy="check the path given with --rules or as attn.rules")
    if root is not None:
        _check_keys(root, path, _DEPTH, {})
    try:
        items = None if root is None else construct(root)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: a value cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(items, list) or not items:
        raise ConfigError(
            f"{path}: a rules file is a list of rules", remedy="begin each with '- match:', see docs/rules.md"
        )
    if len(items) > MAX_RULES:
        raise ConfigError(f"{path}: {len(items)} rules, {MAX_RULES} are the most that are read")
    return tuple(_rule(item, Where(path.name, number)) for number, item in enumerate(items, 1))


def _check_keys(node: yaml.Node, path: Path, depth: int, checked: dict[int, int]) -> None:
    """YAML's loader would keep the last of two equal keys, and follow references in circles.

    `checked`: nodes, which references share, and the depth that was left for each.
    """
    if depth == 0:
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: nested deeper than any rule is")
    if checked.get(id(node), 0) >= depth:
        return
    checked[id(node)] = depth
    below = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name in seen:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: {name:.80} is given twice")
            seen.add(name)
        below = [value for _, value in node.value]
    for value in below:
        _check_keys(value, path, depth - 1, checked)


def _rule(item: object, where: Where) -> Rule:
    fields = _mapping(item, where, "the rule")
    refuse_unknown(fields, ("match", "replace", "recursive"), where, "")
    for name in ("match", "replace"):
        if name not in fields:
            raise where.error(f"{name} is missing", "a rule has match and replace")
    recursive = fields.get("recursive", True)
    if not isinstance(recursive, bool):
        raise where.error(f"recursive is {shown(recursive)}", "it is true or false")
    match = _mapping(fields["match"], where, "match")
    replace = _mapping(fields["replace"], where, "replace")
    kinds = _kinds(match, where)
    pattern = _pattern(match, where)
    if _is_foreign(match, replace, where):
        return read_replacement(replace, Rule(where, pattern, kinds, recursive=recursive, lenient=True))
    return _short(replace, Rule(where, pattern, kinds, recursive=recursive))


def _mapping(value: object, where: Where, field: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        raise where.error(f"{field} is {shown(value)}", "it is a mapping of fields to values")
    return value


def _is_foreign(match: Mapping[str, Any], replace: Mapping[str, Any], where: Where) -> bool:
    """Whether the rule is of KTransformers' form."""
    foreign = sorted(_FOREIGN & set(replace) | {"class"} & set(match))
    short = sorted(_SHORT & set(replace) | {"kind"} & set(match))
    if foreign and short:
        raise where.error(
            f"{foreign[0]} and {short[0]} in one rule", "write it in KTransformers' form or in the short one"
        )
    return bool(foreign)


def _kinds(match: Mapping[str, Any], where: Where) -> frozenset[str] | None:
    refuse_unknown(match, ("name", "class", "kind"), where, "match.")
    if "kind" in match:
        return frozenset({read_name(match["kind"], IMPLEMENTATIONS, where, "match.kind")})
    if "class" not in match:
        return None
    return MATCH_CLASSES[read_name(match["class"], MATCH_CLASSES, where, "match.class")]


def _pattern(match: Mapping[str, Any], where: Where) -> str | None:
    if "name" not in match:
        return None
    pattern = match["name"]
    if not isinstance(pattern, str) or not pattern:
        raise where.error(f"match.name is {shown(pattern)}", "it is a regular expression")
    if len(pattern) > MAX_PATTERN:
        raise where.error(
            f"match.name has {len(pattern)} characters, {MAX_PATTERN} are the most", "split the rule"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Python may read in another way
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise where.error(
            f"match.name {shown(pattern)} is no regular expression: {error}", "in YAML, quote it with '…'"
        ) from error
    return pattern


def _short(replace: Mapping[str, Any], rule: Rule) -> Rule:
    """`replace` of the short form."""
    where = rule.where
    refuse_unknown(replace, sorted(_SHORT), where, "replace.")
    device = read_device(replace["device"], where, "replace.device") if "device" in replace else None
    implementation, serves = None, None
    if "implementation" in replace:
        known = _implementations(rule.kinds)
        implementation = read_name(replace["implementation"], known, where, "replace.implementation")
        serves = frozenset(kind for kind, names in IMPLEMENTATIONS.items() if implementation in names)
    dtype = None
    if "dtype" in replace:
        dtype = read_name(replace["dtype"], DTYPES, where, "replace.dtype")
        if implementation != "dense":
            raise where.error(
                "replace.dtype has a meaning for expanded matrices only", "add implementation: dense"
            )
        serves = MATRICES
    return Rule(
        where=where,
        pattern=rule.pattern,
        kinds=rule.kinds,
        serves=serves,
        title=implementation or "",
        implementation=implementation,
        device=device,
        dtype=dtype,
        recursive=rule.recursive,
    )


def _implementations(kinds: Iterable[str] | None) -> tuple[str, ...]:
    """Those that modules of these kinds can be made of."""
    names = (name for kind in (kinds or IMPLEMENTATIONS) for name in IMPLEMENTATIONS[kind])
    return tuple(dict.fromkeys(names))
