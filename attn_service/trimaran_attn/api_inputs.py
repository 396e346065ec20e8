"""What callers of the Python API hand over: models to compare with a file, texts or tokens, tokenisers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor
from trimaran.errors import ConfigError, RequestError
from trimaran.spec import ModelSpec
from trimaran.wire import SamplingParams

from trimaran_attn.sampling_params import check_token_ids

_SPARE_TOKENS = 16
"""For the tokens without a text of their own."""


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


def token_ids(inputs: object, tokenizer: TextTokenizer | None, vocab_size: int) -> list[int]:
    """The prompt's ids.

    Args:
        inputs: text, ids, an array or tensor [n] or [1, n], or a mapping with `input_ids`, of which those
            count that its `attention_mask`, if it has one, does not hide.
        tokenizer: for text.
        vocab_size: ids are below it.

    Raises:
        RequestError: it is none of these, or several prompts.
    """
    mask = _entry(inputs, "attention_mask")
    inputs = inputs if _entry(inputs, "input_ids") is None else _entry(inputs, "input_ids")
    if isinstance(inputs, str):
        if tokenizer is None:
            raise _refused("inputs is text, but there is no tokenizer: give one, or token ids")
        encoded = tokenizer.encode(inputs)
        inputs = getattr(encoded, "ids", encoded)  # the `tokenizers` library's own have them there
    ids = _row(inputs, "inputs", "iu", "give text, or the ids of one prompt")
    if mask is not None:
        shown = _row(mask, "attention_mask", "iubf", "give one number for each of input_ids") != 0
        if shown.shape != ids.shape:
            raise _refused(f"attention_mask has {shown.size} values for {ids.size} of input_ids")
        ids = ids[shown]
    if not ids.size:
        raise _refused("inputs is empty: give one token at least")
    listed: list[int] = ids.tolist()
    check_token_ids(listed, vocab_size, "inputs")
    return listed


def _entry(inputs: object, name: str) -> object:
    return inputs.get(name) if isinstance(inputs, Mapping) else getattr(inputs, name, None)


def _row(values: object, param: str, kinds: str, remedy: str) -> npt.NDArray[Any]:
    """Numbers of these kinds, [n]; of [1, n] the one row."""
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except ValueError:  # rows of several lengths
        raise _refused(f"{param} is several prompts: give those of one", param) from None
    except (TypeError, RuntimeError):  # numpy has no bfloat16; a meta tensor has no values
        what = f"a tensor of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise _refused(f"{param} is {what}: {remedy}", param) from None
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise _refused(f"{param} has shape {list(array.shape)} of {array.dtype}: {remedy}", param)
    return array


def sampling_params(
    max_new_tokens: object, temperature: object, top_p: object, top_k: object, seed: object
) -> SamplingParams:
    """What to ask of the sampler. None is the default: greedy, nothing cut off, to the end of the context.

    Raises:
        RequestError: a value is no number, or no whole one where it must be.
    """
    limit = None if max_new_tokens is None else _whole(max_new_tokens, "max_new_tokens")
    if limit is not None and limit < 1:
        raise _refused(f"max_new_tokens is {limit}, it must be at least 1", "max_new_tokens")
    return SamplingParams(
        temperature=0.0 if temperature is None else _number(temperature, "temperature"),
        top_p=1.0 if top_p is None else _number(top_p, "top_p"),
        top_k=0 if top_k is None else _whole(top_k, "top_k"),
        seed=None if seed is None else _whole(seed, "seed"),
        max_tokens=limit,
    )


def _whole(value: Any, param: str) -> int:
    """An int from what is one in any library."""
    try:
        return operator.index(value)
    except TypeError:
        raise _refused(f"{param} is {value!r:.80}, it must be a whole number", param) from None


def _number(value: Any, param: str) -> float:
    try:
        if not isinstance(value, str):  # which float() would take
            return float(value)
    except (TypeError, ValueError, RuntimeError):  # as a tensor of several values raises
        pass
    raise _refused(f"{param} is {value!r:.80}, it must be a number", param)


def end_ids(tokenizer: object, from_file: int | None, vocab_size: int) -> list[int]:
    """Tokens that end an answer: the tokeniser's, or else the file's.

    Raises:
        RequestError: the tokeniser's is no token of the model.
    """
    end: Any = getattr(tokenizer, "eos_token_id", None)
    if end is None:
        end = from_file
    ends = [] if end is None else [int(i) for i in (end if isinstance(end, Sequence) else (end,))]
    check_token_ids(ends, vocab_size, "tokenizer.eos_token_id")
    return ends


def stops(stop: object, tokenizer: TextTokenizer | None, vocab_size: int) -> tuple[list[str], list[int]]:
    """Texts and ids that end an answer; None: nothing but the model's own end.

    Raises:
        RequestError: it is neither, or there are texts and no tokeniser.
    """
    texts, ids = list[str](), list[int]()
    for item in _listed(stop):
        token = _id(item)
        if isinstance(item, str) and item:
            texts.append(item)
        elif token is not None:
            ids.append(token)
        else:
            raise _refused(f"stop is {stop!r:.80}: give texts or token ids", "stop")
    if texts and tokenizer is None:
        raise _refused("stop has texts, but there is no tokenizer: give one, or token ids", "stop")
    check_token_ids(ids, vocab_size, "stop")
    return texts, ids


def _listed(stop: Any) -> list[object]:
    if stop is None:
        return []
    if isinstance(stop, str) or _id(stop) is not None:
        return [stop]
    return list(stop) if isinstance(stop, Iterable) else [stop]


def _id(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


class StopTexts:
    """Whether an answer has come to one of the texts that end it.

    A token has a byte of the text at least, as a rule; so the last few tokens tell, however long the answer.

    Args:
        texts: that end it.
        tokenizer: of the answer's tokens.
    """

    def __init__(self, texts: Sequence[str], tokenizer: TextTokenizer) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._tokens = max(len(text.encode(errors="replace")) for text in texts) + _SPARE_TOKENS

    def end(self, ids: Sequence[int]) -> bool:
        """Whether the answer's last token completes a text."""
        text = self._tokenizer.decode(ids[-self._tokens :])
        return any(stop in text for stop in self._texts)


def _refused(text: str, param: str = "inputs") -> RequestError:
    return RequestError(text, code="invalid_request", param=param)
