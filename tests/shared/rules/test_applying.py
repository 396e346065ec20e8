"""What rules give the modules of a small V3 of four layers, the first of which is dense."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trimaran.config_loader import load_config
from trimaran.errors import ConfigError
from trimaran.gguf import GGUFFile
from trimaran.machine import Gpu, Machine, read_machine
from trimaran.plan import make_plan
from trimaran.rules import Chosen, apply_rules, module_rows, modules_of
from trimaran.rules.matching import find_matches
from trimaran.rules.rule import Rule, Where
from trimaran.spec import ModelSpec

Apply = Callable[..., Chosen]
EXAMPLES = Path(__file__).parents[3] / "examples" / "rules"
OPERATORS = "ktransformers.operators"
MODEL = "ktransformers.models.modeling_deepseek_v3"


def given(name: str | None, cls: str | None, replacement: str, **kwargs: Any) -> dict[str, Any]:
    match = {"name": name, "class": cls}
    return {
        "match": {key: value for key, value in match.items() if value is not None},
        "replace": {"class": replacement, "kwargs": kwargs},
    }


def on(device: str) -> dict[str, str]:
    return {"generate_device": device, "prefill_device": device}


def served(device: str, layers: str) -> list[dict[str, Any]]:
    """The rules of KTransformers' files for several GPUs, for some layers."""
    linear = rf"^model\.layers\.{layers}\.(?!self_attn\.kv_b_proj).*$"
    ops = {"generate_op": "KLinearMarlin", "prefill_op": "KLinearTorch"}
    rope = f"{OPERATORS}.RoPE.RotaryEmbeddingV3"
    experts = {
        "prefill_device": device,
        "prefill_op": "KExpertsTorch",
        "generate_device": "cpu",
        "generate_op": "KExpertsCPU",
        "out_device": device,
    }
    return [
        given(rf"^model\.layers\.{layers}\.", f"{MODEL}.DeepseekV3RotaryEmbedding", rope, **on(device)),
        given(linear, "torch.nn.Linear", f"{OPERATORS}.linear.KTransformersLinear", **on(device), **ops),
        given(
            rf"^model\.layers\.{layers}\.mlp$",
            f"{MODEL}.DeepseekV3MoE",
            f"{OPERATORS}.experts.KDeepseekV3MoE",
            **on(device),
        ),
        given(
            rf"^model\.layers\.{layers}\.mlp\.gate$",
            f"{MODEL}.MoEGate",
            f"{OPERATORS}.gate.KMoEGate",
            **on(device),
        ),
        {
            **given(
                rf"^model\.layers\.{layers}\.mlp\.experts$",
                None,
                f"{OPERATORS}.experts.KTransformersExperts",
                **experts,
            ),
            "recursive": False,
        },
        given(
            rf"^model\.layers\.{layers}\.self_attn$",
            None,
            f"{OPERATORS}.attention.KDeepseekV2Attention",
            **on(device),
        ),
        given(rf"^model\.layers\.{layers}\.", None, "default", **on(device)),
    ]


def two_gpus() -> list[dict[str, Any]]:
    """As KTransformers' files for two GPUs are."""
    return [
        given("^model.embed_tokens", None, "default", **on("cpu")),
        *served("cuda:0", "[01]"),
        given(
            "^model$",
            None,
            f"{OPERATORS}.models.KDeepseekV2Model",
            per_layer_prefill_intput_threshold=0,
            transfer_map={2: "cuda:1"},
        ),
        *served("cuda:1", "[23]"),
        given("(model.norm)|(lm_head)", None, "default", **on("cuda:1")),
    ]


def test_two_gpus_become_a_placement(apply: Apply, spec: ModelSpec) -> None:
    chosen = apply(two_gpus(), n_gpus=2)
    assert (chosen.config.attn.device, chosen.config.attn.layers) == ("cuda:0+cuda:1", "0-1,2-3")
    rows = {row.path: row for row in module_rows(chosen, spec)}
    assert rows["model.layers.1.self_attn.o_proj"].device == "cuda:0"
    assert rows["model.layers.2.self_attn.o_proj"].device == rows["lm_head"].device == "cuda:1"
    assert rows["model.layers.2.mlp.experts"].device == rows["model.embed_tokens"].device == "cpu"
    assert rows["model.layers.1.self_attn.o_proj"].implementation == "gpu"
    assert {row.kind for row in rows.values() if row.rule is None} == {"layer"}
    notices = "\n".join(chosen.notices)
    assert "rules 3, 11: prefill_op KLinearTorch has no effect" in notices
    assert "rules 6, 14: prefill_device has no effect on routed experts" in notices
    assert "rule 9: per_layer_prefill_intput_threshold has no effect" in notices
    assert len(chosen.notices) == len(set(chosen.notices))


@pytest.mark.parametrize(
    ("change", "n_gpus", "message"),
    [
        ({}, 1, r"rule \d+: it names cuda:1, but 1 GPU is usable here \(name cuda:0, or"),
        ({}, 0, r"rule \d+: it names cuda:0, but no GPU is usable here \(name cpu, or"),
        ({"attn.device": "cuda:0"}, 2, r"attn\.device is cuda:0, but rules\.yaml puts the model on cuda:0\+"),
        (
            {"attn.device": "cuda:0+cuda:1", "attn.layers": "0-0,1-3"},
            2,
            r"attn\.layers is 0-0,1-3, but rules\.yaml says 0-1,2-3",
        ),
        ({"attn.replicas": ("cuda:0", "cuda:1")}, 2, r"names devices, and so does attn\.replicas"),
    ],
)
def test_contradictions_name_the_remedy(
    change: dict[str, object], n_gpus: int, message: str, apply: Apply
) -> None:
    with pytest.raises(ConfigError, match=message):
        apply(two_gpus(), n_gpus=n_gpus, **change)


def test_what_says_the_same_twice_is_no_contradiction(apply: Apply) -> None:
    same = {"attn.device": "cuda:0+cuda:1", "attn.layers": "0-1,2-3"}
    assert apply(two_gpus(), n_gpus=2, **same).config.attn.layers == "0-1,2-3"
    one = [given(r"lm_head", None, "default", **on("cuda"))]
    assert apply(one, n_gpus=1, **{"attn.device": "cuda"}).config.attn.device == "cuda:0"


def short(name: str, device: str) -> dict[str, Any]:
    return {"match": {"name": name}, "replace": {"device": device}}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [short("o_proj", "cpu"), short(r"layers\.", "cuda:0")],
            r"rule 1: .* given cpu, but .* by rule 2",
        ),
        (
            [short(r"layers\.[01]\.", "cuda:0"), short(r"layers\.", "cpu")],
            r"rule 2: some layers are given cpu",
        ),
        ([short(r"layers\.[01]\.", "cuda:0"), short(r"layers\.2", "cuda:1")], r"no rule gives layer 3"),
        (
            [short(r"layers\.[03]\.", "cuda:0"), short(r"layers\.", "cuda:1")],
            r"rule 1: cuda:0 has layers that do not follow one another",
        ),
        (
            [{"match": {"kind": "experts"}, "replace": {"device": "cuda:0"}}],
            r"rule 1: replace\.device is cuda:0: a layer's routed experts are in RAM .*gpu_experts",
        ),
        (
            [
                given("^model$", None, f"{OPERATORS}.models.KDeepseekV2Model", transfer_map={2: "cuda:1"}),
                short("norm", "cuda:0"),
            ],
            r"rule 1: transfer_map says that layer 2 is on cuda:1, but other rules give it cuda:0",
        ),
        (
            [{"match": {"name": r"layers\.1"}, "replace": {"implementation": "dense"}}],
            r"fits model\.layers\.1, of kind layer, but dense is for kind head or linear \(add kind: linear",
        ),
        (
            [given(r"self_attn$", None, f"{OPERATORS}.gate.KMoEGate")],
            r"fits model\.layers\.0\.self_attn, of kind attention, but KMoEGate is for kind gate",
        ),
        (
            [{"match": {"kind": "head"}, "replace": {"implementation": "gpu", "device": "cpu"}}],
            r"implementation is gpu, but lm_head is on the CPU \(there: quantised, packed, dense\)",
        ),
        (
            [{"match": {"kind": "head"}, "replace": {"implementation": "packed", "device": "cuda:0"}}],
            r"implementation is packed, but lm_head is on a GPU \(there: dense, gpu\)",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(rules: list[dict[str, Any]], message: str, apply: Apply) -> None:
    with pytest.raises(ConfigError, match=message):
        apply(rules, n_gpus=None)


def test_the_first_rule_wins_and_one_without_recursion_closes_its_branch(apply: Apply) -> None:
    dense = {"implementation": "dense"}
    chosen = apply(
        [
            {
                "match": {"name": r"^model\.layers\.1\.self_attn$"},
                "replace": {"implementation": "naive"},
                "recursive": False,
            },
            {"match": {"name": "o_proj$", "kind": "linear"}, "replace": dense},
            {"match": {"kind": "linear"}, "replace": {"implementation": "packed"}},
            {"match": {"name": r"o_proj$"}, "replace": {"implementation": "quantised"}},
        ]
    )
    choices = chosen.choices
    assert choices["model.layers.1.self_attn"].implementation == "naive"
    assert not [path for path in choices if path.startswith("model.layers.1.self_attn.")]
    assert (choices["model.layers.0.self_attn.o_proj"].rule, choices["model.layers.0.mlp.up_proj"].rule) == (
        2,
        3,
    )
    assert chosen.notices == (
        "rules.yaml: rule 4: no module takes it: nothing matches, or an earlier rule comes first",
    )
    assert chosen.config.attn.device == "auto"


def test_kernels_that_the_device_does_not_have_are_told(apply: Apply) -> None:
    linear = f"{OPERATORS}.linear.KTransformersLinear"
    rules = [
        given("o_proj$", None, linear, generate_device="cpu", prefill_device="cuda", generate_op="KLinearQ8"),
        given("^lm_head$", None, linear, **on("cuda"), generate_op="KLinearTorch"),
    ]
    chosen = apply(rules, n_gpus=1)
    assert chosen.choices["model.layers.0.self_attn.o_proj"].implementation is None
    assert chosen.choices["lm_head"].implementation == "dense"
    assert chosen.config.attn.device == "cuda:0"
    notices = "\n".join(chosen.notices)
    assert "rule 1: generate_device and prefill_device differ: the module is on the GPU for both" in notices
    assert "rule 1: its kernel (packed) is not one of a GPU: the default is taken" in notices


def test_attention_of_ktransformers_form(apply: Apply) -> None:
    flashinfer = f"{OPERATORS}.balance_serve_attention.flashinfer_attn"
    rules = [
        given(r"layers\.0\.self_attn$", None, flashinfer, absorb_for_prefill=True),
        given(r"self_attn$", None, flashinfer, absorb_for_prefill=False, chunck_size=1000),
    ]
    chosen = apply(rules)
    assert chosen.choices["model.layers.0.self_attn"].implementation == "absorbed"
    assert chosen.choices["model.layers.1.self_attn"].implementation == "auto"
    (notice,) = chosen.notices
    assert "rule 2: chunck_size has no effect: attn.max_step_tokens" in notice


def test_latent_maps_have_no_kernel_to_choose(apply: Apply, v3_file: Path) -> None:
    linear = f"{OPERATORS}.linear.KTransformersLinear"
    chosen = apply([given("kv_b_proj$", "torch.nn.Linear", linear, generate_op="KLinearTorch")])
    assert {choice.implementation for choice in chosen.choices.values()} == {None}
    assert "kv_b_proj is part of the attention" in chosen.notices[0]
    with GGUFFile.open(v3_file) as file:
        assert chosen.held(file.tensors) == {}


def test_a_pattern_that_backtracks_for_ever_is_refused_by_name(spec: ModelSpec) -> None:
    paths = [module.path for module in modules_of(spec)]
    rules = [
        Rule(Where("rules.yaml", 1), "norm$"),
        Rule(Where("rules.yaml", 2), r"^(([a-z0-9_]+\.?)+)+!$"),
    ]
    assert {paths[index] for index in find_matches(rules[:1], paths)[0]} >= {"model.norm"}
    with pytest.raises(ConfigError, match=r"rules\.yaml: rule 2: match\.name .* takes more than 3 s"):
        find_matches(rules, paths)


def machine(memory: int) -> Machine:
    gpu = Gpu("card", memory=memory, memory_free=memory, capability="9.0", driver="")
    return replace(read_machine(with_gpus=False), gpus=(gpu,))


@pytest.mark.parametrize("tied", [False, True], ids=["own", "tied"])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_plan_counts_matrices_in_the_form_that_was_chosen(
    device: str, tied: bool, apply: Apply, v3_file: Path, spec: ModelSpec
) -> None:
    rules = [{"match": {"kind": "head"}, "replace": {"implementation": "dense", "device": device}}]
    chosen = apply(rules, n_gpus=None)
    with GGUFFile.open(v3_file) as file:
        tensors = {
            name: info for name, info in file.tensors.items() if not (tied and name == "output.weight")
        }
        held = chosen.held(tensors)
        values = 2 if device == "cuda:0" else 4
        rows, columns = file.tensors["output.weight"].shape
        assert held == {"output.weight": rows * columns * values}
        plain, counted = (
            make_plan(spec, tensors, machine(8 << 30), chosen.config, held=form) for form in (None, held)
        )
    grown = {part.part: part.nbytes for part in counted.items}["head"]
    assert grown > {part.part: part.nbytes for part in plain.items}["head"]
    assert grown >= held["output.weight"]


@pytest.mark.parametrize("name", ["v3-one-gpu.yaml", "short.yaml"])
def test_the_examples_apply_without_a_word(name: str, spec: ModelSpec) -> None:
    config = load_config(None, {"attn.rules": str(EXAMPLES / name)}, {})
    chosen = apply_rules(config, spec, 1 if name.startswith("v3") else 0)
    assert chosen.choices
    assert chosen.notices == ()
    assert re.fullmatch("cuda:0|auto", chosen.config.attn.device)


def test_a_rule_for_one_module_tells_what_follows_it(apply: Apply) -> None:
    chosen = apply([short("^lm_head$", "cpu")], n_gpus=2)
    assert chosen.config.attn.device == "cpu"
    assert "the whole model is on cpu" in " ".join(chosen.notices)
    with pytest.raises(ConfigError, match="routed experts are in RAM"):
        apply([short(r"mlp\.experts$", "cuda:1")], n_gpus=2)
    with pytest.raises(ConfigError, match="routed experts are in RAM"):
        apply([given(r"mlp\.experts$", None, "default", **on("cuda:1"))], n_gpus=2)
    apply([{"match": {"kind": "embedding"}, "replace": {"implementation": "quantised"}}], n_gpus=1)
    chosen = apply([short("^model$", "cuda:1")], n_gpus=2)
    assert chosen.config.attn.device == "auto"
    assert "no effect" in " ".join(chosen.notices)
