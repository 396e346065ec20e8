"""Mistakes in rules files: one line with the file, the rule, the field and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trimaran.errors import ConfigError
from trimaran.rules import Chosen, read_rules

ALL = {"name": "."}
LINEAR = "ktransformers.operators.linear.KTransformersLinear"
LAUGHS = "".join(f"- &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * 50)}]\n" for i in range(6))
EXPERTS = "ktransformers.operators.experts.KTransformersExperts"


def rule(match: Any, replace: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"match": match, "replace": replace, **more}]


def kwargs(name: str, **values: Any) -> dict[str, Any]:
    return {"class": name, "kwargs": values}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("", r"rules\.yaml: a rules file is a list of rules \(begin each"),
        ("match: {name: x}", r"rules\.yaml: a rules file is a list"),
        ("- {match: {name: a}, match: {name: b}, replace: {class: default}}", r":1: match is given twice"),
        ("- {? [a] : b, match: 1}", r"a value cannot be read"),
        ("- {match: 2020-13-45}", r"a value cannot be read"),
        (f"- {{match: {'9' * 5000}}}", r"a value cannot be read"),
        (LAUGHS, r"rule 1: the rule is \['x', "),
        ("- [", r"rules\.yaml:\d: not valid YAML"),
        ("- &a [*a]", r"rule 1: the rule is \[\["),
        ("- !!python/object/apply:os.system ['true']", r"a value cannot be read"),
        ("- " + "[" * 40 + "]" * 40, r"nested deeper"),
        (
            f"- {{match: {{kind: 0x{'f' * 5000}}}, replace: {{device: cpu}}}}",
            "kind is a very large int",
        ),
        ([{"match": ALL}], r"rule 1: replace is missing \(a rule has match and replace\)"),
        ([{"replace": {"device": "cpu"}}], r"rule 1: match is missing"),
        ([7], r"rule 1: the rule is 7 \(it is a mapping"),
        (rule(ALL, {}), r"rule 1: replace is {} "),
        (rule({"nam": "x"}, {"device": "cpu"}), r"rule 1: match\.nam is no field \(did you mean name\?"),
        (rule(ALL, {"devise": "cpu"}), r"rule 1: replace\.devise is no field \(did you mean device\?"),
        (rule(ALL, {"device": "cpu"}, recursiv=False), r"recursiv is no field \(did you mean recursive"),
        (rule(ALL, {"device": "cpu"}, recursive="no"), r"recursive is 'no' \(it is true or false\)"),
        (rule({"name": "("}, {"device": "cpu"}), r"match\.name '\(' is no regular expression: .*quote"),
        (rule({"name": 7}, {"device": "cpu"}), r"match\.name is 7 \(it is a regular expression\)"),
        (rule({"name": "x" * 501}, {"device": "cpu"}), r"match\.name has 501 characters, 500 are"),
        (rule({"kind": "liner"}, {"device": "cpu"}), r"match\.kind is 'liner' \(did you mean linear\?"),
        (
            rule({"class": "os.system"}, {"class": "default"}),
            r"match\.class is 'os\.system' \(known: .*Linear",
        ),
        (
            rule(ALL, {"class": "os.system"}),
            r"replace\.class is 'os\.system' \(known: default, ktransformers",
        ),
        (rule(ALL, {"class": f"{LINEAR}s"}), rf"did you mean {re.escape(LINEAR)}\?"),
        (rule(ALL, {"class": "default", "device": "cpu"}), r"class and device in one rule"),
        (rule({"class": "torch.nn.Linear", "kind": "head"}, {"class": "default"}), "class and kind in one"),
        (rule(ALL, {"device": "xpu"}), r"replace\.device is 'xpu' \(it is cpu, cuda, or cuda:N\)"),
        (rule(ALL, {"implementation": "fast"}), r"replace\.implementation is 'fast' \(known: absorbed, "),
        (
            rule({"kind": "norm"}, {"implementation": "dense"}),
            r"implementation is 'dense' \(known: rms\)",
        ),
        (rule({"kind": "head"}, {"dtype": "float32"}), r"dtype has a meaning for expanded .*dense"),
        (
            rule({"kind": "head"}, {"implementation": "dense", "dtype": "float8"}),
            r"replace\.dtype is 'float8'",
        ),
        (rule(ALL, kwargs(LINEAR, generate_op="KLinearMagic")), r"kwargs\.generate_op is 'KLinearMagic'"),
        (rule(ALL, kwargs(LINEAR, generate_devise="cpu")), r"generate_devise is no field \(did you mean gen"),
        (rule(ALL, kwargs(LINEAR, generate_device="npu")), r"kwargs\.generate_device is 'npu'"),
        (
            rule(ALL, kwargs(LINEAR, generate_device="cuda:0", prefill_device="cuda:1")),
            r"generate_device is cuda:0, prefill_device is cuda:1: a module is on one GPU",
        ),
        (rule(ALL, kwargs(EXPERTS, generate_device="cuda:0")), r"routed experts are in RAM .*gpu_experts"),
        (rule(ALL, kwargs(EXPERTS, backend="GPU")), r"kwargs\.backend is 'GPU' \(known: .*AMXInt4"),
        (rule(ALL, {"class": "default", "kwargs": [1]}), r"replace\.kwargs is \[1\]"),
        (
            rule(ALL, kwargs("ktransformers.operators.models.KDeepseekV2Model", transfer_map={"a": "cpu"})),
            r"transfer_map names the layer 'a'",
        ),
        (
            rule(
                ALL,
                kwargs("ktransformers.operators.attention.KDeepseekV2Attention", absorb_for_prefill="no"),
            ),
            r"absorb_for_prefill is 'no' \(it is true or false\)",
        ),
    ],
)
def test_a_mistake_is_one_line(rules: Any, message: str, apply: Callable[..., Chosen]) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        apply(rules)
    assert "rules.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_number_is_that_of_the_rule(apply: Callable[..., Chosen]) -> None:
    good = rule({"kind": "norm"}, {"implementation": "rms"})
    with pytest.raises(ConfigError, match=r"rules\.yaml: rule 3: match\.kind"):
        apply(good * 2 + rule({"kind": "x"}, {"device": "cpu"}))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: No such file.*attn\.rules"):
        read_rules(tmp_path / "gone.yaml")
    many = tmp_path / "many.yaml"
    many.write_text("- {match: {kind: norm}, replace: {implementation: rms}}\n" * 1001)
    with pytest.raises(ConfigError, match=r"1001 rules, 1000 are the most"):
        read_rules(many)
