"""What callers of the Python API hand over: models to compare with a file, texts or tokens, tokenisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor
from trimaran.errors import ConfigError, RequestError
from trimaran.spec import ModelSpec


@runtime_checkable
class TextTokenizer(Protocol):
    """What of a tokeniser is used; transformers' and the gateway's own have it."""

    def encode(self, text: str) -> Sequence[int]:
        """Text to ids."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text."""
        ...


@runtime_checkable
class Streamer(Protocol):
    """Transformers' interface of streamers: the prompt first, then each token."""

    def put(self, value: Tensor) -> None:
        """Ids, int64 [n]."""
        ...

    def end(self) -> None:
        """No more tokens."""
        ...


def check_same_model(model: object, spec: ModelSpec, file: str) -> None:
    """Refuse a model that is not the file's.

    Args:
        model: transformers' model or configuration, a `ModelSpec`, or None, which is any.
        spec: the file's dimensions.
        file: for the message.

    Raises:
        ConfigError: a dimension differs, or it is none of these; it names the dimension.
    """
    if model is None:
        return
    if isinstance(model, ModelSpec):
        _compare(vars(model), vars(spec), file)
        return
    config = getattr(model, "config", model)
    theirs = {ours: getattr(config, name) for name, ours in _names().items() if hasattr(config, name)}
    if "hidden_size" not in theirs or "n_layers" not in theirs:
        raise ConfigError(
            f"model is a {type(model).__name__}",
            remedy="give a transformers model or configuration, a ModelSpec, or None",
        )
    _compare(theirs, {**vars(spec), **{f"moe.{key}": value for key, value in vars(spec.moe).items()}}, file)


def _names() -> Mapping[str, str]:
    """Names in transformers' configurations, and ours."""
    same = (
        "hidden_size",
        "vocab_size",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
    )
    return {
        **{name: name for name in same},
        "v_head_dim": "v_head_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "dense_intermediate_size",
        "first_k_dense_replace": "n_dense_layers",
        "n_routed_experts": "moe.n_experts",
        "num_experts_per_tok": "moe.top_k",
        "moe_intermediate_size": "moe.intermediate_size",
    }


def _compare(theirs: Mapping[str, Any], ours: Mapping[str, Any], file: str) -> None:
    for name, value in theirs.items():
        if name != "name" and value != ours[name]:
            raise ConfigError(
                f"{file}: {name} is {ours[name]}, the model given has {value}",
                remedy="give the file's own model, or None",
            )


def token_ids(inputs: object, tokenizer: TextTokenizer | None) -> list[int]:
    """The prompt's ids.

    Args:
        inputs: text, ids, an array or tensor [n] or [1, n], or a mapping with `input_ids`.
        tokenizer: for text.

    Raises:
        RequestError: it is none of these, or several prompts.
    """
    if isinstance(inputs, Mapping) or hasattr(inputs, "input_ids"):
        inputs = inputs.get("input_ids") if isinstance(inputs, Mapping) else inputs.input_ids
    if isinstance(inputs, str):
        if tokenizer is None:
            raise _refused("inputs is text, but there is no tokenizer: give one, or token ids")
        inputs = tokenizer.encode(inputs)
    try:
        values = np.asarray(inputs.cpu() if isinstance(inputs, Tensor) else inputs)
    except ValueError:  # rows of several lengths
        raise _refused("inputs is several prompts: give the ids of one") from None
    if values.ndim == 2 and len(values) == 1:
        values = values[0]
    if values.ndim != 1 or not values.size or values.dtype.kind not in "iu":
        raise _refused(
            f"inputs has shape {list(values.shape)} of {values.dtype}: give text, or the ids of one prompt"
        )
    ids: list[int] = values.tolist()
    return ids


def end_ids(tokenizer: object, from_file: int | None) -> list[int]:
    """Tokens that end an answer: the tokeniser's, or else the file's."""
    end = getattr(tokenizer, "eos_token_id", None)
    if end is None:
        end = from_file
    return [] if end is None else [int(i) for i in (end if isinstance(end, (list, tuple)) else (end,))]


def stops(stop: object, tokenizer: TextTokenizer | None) -> tuple[list[str], list[int]]:
    """Texts and ids that end an answer.

    Raises:
        RequestError: it is neither, or there are texts and no tokeniser.
    """
    items = [stop] if isinstance(stop, (str, int)) else list(stop) if isinstance(stop, Sequence) else None
    if items is None or not all(isinstance(item, (str, int)) and item != "" for item in items):
        raise _refused(f"stop is {stop!r:.80}: give texts or token ids", "stop")
    texts = [item for item in items if isinstance(item, str)]
    if texts and tokenizer is None:
        raise _refused("stop has texts, but there is no tokenizer: give one, or token ids", "stop")
    return texts, [item for item in items if isinstance(item, int)]


def _refused(text: str, param: str = "inputs") -> RequestError:
    return RequestError(text, code="invalid_request", param=param)
