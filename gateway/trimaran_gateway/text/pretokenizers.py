"""How each tokeniser family cuts text before byte-pair merging, by GGUF's `tokenizer.ggml.pre`.

The cuts are those of the families' published tokenizer.json files (DeepSeek-V2 and DeepSeek-V3) and, for
deepseek-coder, of its published description: letters, punctuation, CJK runs and single digits.
"""

from __future__ import annotations

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from trimaran.errors import ModelFileError

_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

_LATIN_GREEK_CYRILLIC = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-"
    "\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-"
    "\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113"
    "\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-"
    "\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)

_DEEPSEEK_LLM = (
    "[\r\n]",
    _LATIN_GREEK_CYRILLIC,
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
)

_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)

_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+",
)

_FAMILIES: dict[str, tuple[tuple[str, ...], bool]] = {
    "deepseek-llm": (_DEEPSEEK_LLM, True),
    "deepseek-coder": (_DEEPSEEK_CODER, True),
    "deepseek-v3": (_DEEPSEEK_V3, False),
    "joyai-llm": (_DEEPSEEK_V3, False),
}
"""Name → (regexes applied one after the other, whether every digit then stands alone)."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokeniser that GGUF calls `name`, ending in the byte-level alphabet.

    Raises:
        ModelFileError: no such family is known; the message lists those that are.
    """
    if name not in _FAMILIES:
        raise ModelFileError(
            f"tokenizer.ggml.pre = {name!r} is not supported", remedy=f"supported: {', '.join(_FAMILIES)}"
        )
    patterns, single_digits = _FAMILIES[name]
    steps: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in patterns]
    if single_digits:
        steps.append(Digits(individual_digits=True))
    steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
    return Sequence(steps)
