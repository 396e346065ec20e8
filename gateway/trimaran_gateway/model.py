"""The one model that is served, as the gateway sees it: names, tokeniser, template and facts for clients."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimaran.errors import ModelFileError
from trimaran.gguf import GGUFFile
from trimaran.telemetry import Log

from trimaran_gateway.chat.defaults import default_template
from trimaran_gateway.chat.prompt import PromptBuilder
from trimaran_gateway.chat.template import ChatTemplate
from trimaran_gateway.text.tokenizer import Tokenizer

_LARGE_MODEL = 1_000_000_000
_log = Log(__name__)


@dataclass(frozen=True)
class ModelFacts:
    """What clients may ask about the file.

    Attributes:
        modified: when the file was last written.
        nbytes: size of all its parts.
        parameters: number of weights.
        quantization: the most common block type of its large tensors, e.g. ``Q4_K``.
        context_length: the model's own limit; the engine's may be lower.
        metadata: scalar GGUF keys.
    """

    modified: datetime
    nbytes: int
    parameters: int
    quantization: str
    architecture: str
    context_length: int
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class ServedModel:
    """Everything about the model that requests need."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    prompts: PromptBuilder
    facts: ModelFacts

    @property
    def digest(self) -> str:
        """A stable id of the served file for clients that want one (not a hash of its weights)."""
        text = f"{self.name}\0{self.facts.nbytes}\0{self.facts.modified.isoformat()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def answers_to(self, name: str) -> bool:
        """Whether a client that asks for `name` means this model; Ollama's `:latest` may follow."""
        return name.removesuffix(":latest") == self.name.removesuffix(":latest")


def load_model(path: Path, name: str | None = None) -> ServedModel:
    """Read the tokeniser, the template and the facts of a GGUF file; the weights stay unread.

    Args:
        path: the file, or the first of split files.
        name: what clients call it; None takes `general.name`, else the file's name.

    Raises:
        ModelFileError: the file cannot be read, or its tokeniser or template is not supported.
    """
    with GGUFFile.open(path) as file:
        metadata = dict(file.metadata)
        tokenizer = Tokenizer.from_metadata(metadata)
        template = _template(metadata, tokenizer)
        facts = _facts(path, file, metadata)
    return ServedModel(
        name=name or _slug(str(metadata.get("general.name") or path.stem)),
        tokenizer=tokenizer,
        template=template,
        prompts=PromptBuilder(tokenizer, template, tool_rules=_wants_tool_rules(metadata, facts)),
        facts=facts,
    )


def _wants_tool_rules(metadata: Mapping[str, Any], facts: ModelFacts) -> bool:
    """Whether tools come with rules in prose: the file may say so, else a large model gets them."""
    style = metadata.get("trimaran.tool_prompt")
    return style == "rules" if style else facts.parameters >= _LARGE_MODEL


def _template(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
    source = metadata.get("tokenizer.chat_template")
    if not source:
        _log.warning("the file brings no chat template: a DeepSeek one is used")
        source = default_template(tokenizer.vocabulary.markers)
    if not isinstance(source, str):
        raise ModelFileError("tokenizer.chat_template is no text")
    return ChatTemplate(
        source,
        bos=_token_text(tokenizer, tokenizer.bos_id),
        eos=_token_text(tokenizer, tokenizer.eos_id),
        tool_use=metadata.get("tokenizer.chat_template.tool_use"),
    )


def _token_text(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.vocabulary.tokens[token]


def _facts(path: Path, file: GGUFFile, metadata: Mapping[str, Any]) -> ModelFacts:
    architecture = str(metadata.get("general.architecture", "unknown"))
    types: Counter[str] = Counter()
    parameters = 0
    for tensor in file.tensors.values():
        size = 1
        for length in tensor.shape:
            size *= length
        parameters += size
        if len(tensor.shape) > 1:
            types[tensor.type.name] += size
    scalars = {key: value for key, value in metadata.items() if isinstance(value, (str, int, float, bool))}
    return ModelFacts(
        modified=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        nbytes=sum(part.stat().st_size for part in file.paths),
        parameters=parameters,
        quantization=types.most_common(1)[0][0] if types else "unknown",
        architecture=architecture,
        context_length=int(metadata.get(f"{architecture}.context_length", 0)),
        metadata=scalars,
    )


def _slug(name: str) -> str:
    """A name that fits into URLs and command lines."""
    return "-".join(name.split()).lower() or "model"
