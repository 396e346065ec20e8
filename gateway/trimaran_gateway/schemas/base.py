"""What the bodies of all dialects share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from trimaran_gateway.errors import unsupported

MAX_STOPS = 16

Probability = Annotated[float, Field(ge=0, le=1)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOPS)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
TopK = Annotated[int, Field(ge=-1, lt=1 << 31)]
"""0 and -1: all tokens. Bounded, as messages to the engine hold 64 bits."""
LogitBias = dict[
    Annotated[str, StringConstraints(pattern=r"^\d{1,7}$")], Annotated[float, Field(ge=-100, le=100)]
]


def _tell_refused(schema: dict[str, Any], model: type[Any]) -> None:
    """What cannot be honoured, and why, belongs into the OpenAPI document too."""
    if model.refused:
        schema["x-refused"] = dict(model.refused)


class Body(BaseModel):
    """A request body: unknown fields are accepted, numbers in strings are not.

    `refused` lists fields that clients are known to send and that cannot be honoured; a value other than
    null (or one of `harmless`) is a 400 that says why.
    """

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        json_schema_extra=_tell_refused,
    )
    refused: ClassVar[Mapping[str, str]] = {}
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def refuse_unsupported(self, where: str = "") -> None:
        """Fail for the first field that cannot be honoured; `where` is what comes before its name.

        Raises:
            ApiError: 400, naming the field.
        """
        for name, value in (self.model_extra or {}).items():
            why = self.refused.get(name)
            if why is not None and value is not None and value not in self.harmless.get(name, ()):
                raise unsupported(where + name, why)


class Labels(BaseModel):
    """What OpenAI's clients say about a request for the books: it changes no answer."""

    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None


NO_GRAMMAR = "give the form of the answer as response_format"
NO_SUCH_SAMPLER = "this server has no such sampler"

_GRAMMAR = "guided_json guided_regex guided_choice guided_grammar structured_outputs grammar json_schema"
GRAMMAR_FIELDS = dict.fromkeys(_GRAMMAR.split(), NO_GRAMMAR)

OTHER_NAMES: dict[str, str] = {
    "n_predict": "use max_tokens",
    "repeat_penalty": "use repetition_penalty",
    "n_probs": "use logprobs",
    "allowed_token_ids": "use logit_bias",
    "logits_processors": NO_SUCH_SAMPLER,
    "include_stop_str_in_output": "stop strings are never shown",
    "skip_special_tokens": "control tokens are never shown",
    "spaces_between_special_tokens": "control tokens are never shown",
    "truncate_prompt_tokens": "a prompt that is too long is refused, not cut",
    "return_tokens_as_token_ids": "logprobs name tokens by their text and bytes",
    "return_token_ids": "use /tokenize",
}
"""Fields of vLLM and llama.cpp that are not honoured, and what to do instead."""

OTHER_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n_predict": (-1,),
    "repeat_penalty": (1,),
    "n_probs": (0,),
    "logits_processors": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
}

SAMPLER_HARMLESS: dict[str, tuple[Any, ...]] = {
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "bad_words": ([],),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
}

SAMPLER_FIELDS = dict.fromkeys(SAMPLER_HARMLESS, NO_SUCH_SAMPLER)
