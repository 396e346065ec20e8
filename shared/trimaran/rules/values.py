"""Values of a rule's fields, and what is said about those that are wrong."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterable

from trimaran.config_options import nearest
from trimaran.rules.rule import Where

DTYPES = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_SHOWN = 12
_LONGEST = 200


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object) -> str:
    """A value for a message, in a few words: references in YAML can make small files large values."""
    try:
        return _REPR.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"a very large {type(value).__name__}"


def read_name(value: object, known: Collection[str], where: Where, field: str) -> str:
    """One of the names that are known; each is looked up, none is ever imported.

    Raises:
        ConfigError: it is none of them.
    """
    if isinstance(value, str) and value in known:
        return value
    raise where.error(f"{field} is {shown(value)}", _remedy(value if isinstance(value, str) else "", known))


def read_device(value: object, where: Where, field: str) -> str:
    """`cpu` or `cuda:N`; `cuda` is the first GPU.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, str) or _DEVICE.fullmatch(value) is None:
        raise where.error(f"{field} is {shown(value)}", "it is cpu, cuda, or cuda:N")
    kind, _, number = value.partition(":")
    return kind if kind == "cpu" else f"cuda:{int(number or 0)}"


def refuse_unknown(fields: Iterable[str], known: Collection[str], where: Where, prefix: str) -> None:
    """Refuse fields that have no meaning.

    Raises:
        ConfigError: naming the first.
    """
    for name in fields:
        if name not in known:
            raise where.error(f"{prefix}{name!s:.80} is no field", _remedy(name, known))


def _remedy(name: str, known: Collection[str]) -> str:
    """The nearest name, and the others as far as a line holds them."""
    guess = nearest(name[:_LONGEST], known) if name else None
    listed = ", ".join(sorted(known)) if len(known) <= _SHOWN or guess is None else ""
    hint = f"did you mean {guess}?" if guess else ""
    return "; ".join(text for text in (hint, f"known: {listed}" if listed else "") if text)
