"""Rules files: which implementation, device and element type each module of a model gets.

Users bring KTransformers' files, or write a shorter form of their own; docs/rules.md shows both. A name in a
file is looked up in tables here and never imported or evaluated.

    modules         the modules of a model, by path and kind, and the implementations of each kind
    ktransformers   the class and operator names of KTransformers' files, and what they are here
    rule            one rule
    reading         a file to rules; all that is wrong with it alone
    matching        regular expressions against paths, in bounded time
    choosing        which rule each module takes, and what that gives it
    placing         devices of modules to devices of layers, which is what can be planned
    applying        all of it, for a configuration
    rows            what each module gets, for people to read
"""

from trimaran.rules.applying import Chosen, apply_rules
from trimaran.rules.choosing import Choice
from trimaran.rules.modules import IMPLEMENTATIONS, Module, modules_of
from trimaran.rules.reading import read_rules
from trimaran.rules.rows import ModuleRow, module_rows
from trimaran.rules.rule import Rule

__all__ = [
    "IMPLEMENTATIONS",
    "Choice",
    "Chosen",
    "Module",
    "ModuleRow",
    "Rule",
    "apply_rules",
    "module_rows",
    "modules_of",
    "read_rules",
]
