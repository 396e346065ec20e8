"""GGUF keys as a converter writes them from a tokenizer.json of Hugging Face's tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def gguf_keys(path: Path, pre: str, *, bos: int, eos: int) -> dict[str, Any]:
    """The `tokenizer.ggml.*` keys of a byte-level BPE tokeniser whose cuts GGUF calls `pre`."""
    source = json.loads(path.read_text())
    ids = {**source["model"]["vocab"], **{token["content"]: token["id"] for token in source["added_tokens"]}}
    tokens = [token for token, _ in sorted(ids.items(), key=lambda item: item[1])]
    types = [1] * len(tokens)
    for token in source["added_tokens"]:
        types[token["id"]] = 3 if token["special"] or "｜" in token["content"] else 4
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": source["model"]["merges"],
        "tokenizer.ggml.bos_token_id": bos,
        "tokenizer.ggml.eos_token_id": eos,
    }
