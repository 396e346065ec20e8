"""The same weights in transformers' DeepseekV3ForCausalLM: the reference that the lean model must equal."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from .model import DemoModel


def to_transformers(model: DemoModel) -> DeepseekV3ForCausalLM:
    """A DeepseekV3ForCausalLM with the weights of `model`."""
    dims = asdict(model.config)
    theta = dims.pop("rope_theta")
    config = DeepseekV3Config(
        **dims,
        num_key_value_heads=model.config.num_attention_heads,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    reference: DeepseekV3ForCausalLM = DeepseekV3ForCausalLM(config)
    reference.load_state_dict({reference_name(k): v for k, v in model.state_dict().items()})
    return reference


def reference_name(name: str) -> str:
    """Our parameter names are transformers', but for the `model.` in front and the experts' own module."""
    if name == "lm_head.weight":
        return name
    for stack in ("gate_up_proj", "down_proj"):
        if name.endswith(f".mlp.{stack}"):
            name = name.replace(f".mlp.{stack}", f".mlp.experts.{stack}")
    return f"model.{name}"


@torch.no_grad()
def largest_difference(model: DemoModel, ids: Tensor) -> float:
    """The largest difference of the two models' logits on `ids` [rows, length]."""
    ours = model([ids]).view(*ids.shape, -1)
    theirs = to_transformers(model)(input_ids=ids).logits
    return float((ours - theirs).abs().max())
