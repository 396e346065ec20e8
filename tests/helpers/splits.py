"""Cuts of a pre-tokeniser in a form that is short to store."""

from __future__ import annotations

import hashlib

from tokenizers.pre_tokenizers import PreTokenizer


def splits_digest(cutter: PreTokenizer, text: str) -> str:
    """A digest of the text and of where it is cut."""
    ends = [end for _, (_, end) in cutter.pre_tokenize_str(text)]
    return hashlib.sha256(f"{text}\0{ends}".encode()).hexdigest()[:16]
