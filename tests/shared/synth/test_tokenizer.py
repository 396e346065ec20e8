"""The small tokeniser is a whole one."""

from __future__ import annotations

import jinja2
from jinja2.sandbox import SandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trimaran.synth import synth_tokenizer
from trimaran.synth.tokenizer import BOS, CHAT_TEMPLATE, CONTROL, EOS, byte_symbols


def test_byte_symbols_agree_with_tokenizers() -> None:
    assert sorted(byte_symbols()) == sorted(pre_tokenizers.ByteLevel.alphabet())


def test_any_text_round_trips() -> None:
    ours = synth_tokenizer()
    merges = [tuple(merge.split(" ")) for merge in ours.merges]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(ours.tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = "hello the\n\nworld  ünïcode 深度 🙂\t\x00"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert ours.tokens.index("hello") in ids


def test_special_tokens() -> None:
    ours = synth_tokenizer()
    assert len(set(ours.tokens)) == len(ours.tokens) == len(ours.types)
    assert ours.types[ours.tokens.index(BOS)] == CONTROL
    keys = ours.metadata()
    assert ours.tokens[int(str(keys["tokenizer.ggml.eos_token_id"]))] == EOS


def test_chat_template() -> None:
    template = SandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(CHAT_TEMPLATE)
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>easy</think>2", "tool_calls": None},
        {"role": "user", "content": "Use a tool."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    text = template.render(messages=messages, bos_token=BOS, add_generation_prompt=True)
    assert text.startswith(
        f"{BOS}Be brief.<｜User｜>1+1?<｜Assistant｜>2{EOS}<｜User｜>Use a tool.<｜Assistant｜>"
    )
    assert "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n" in text
    assert text.endswith("<｜Assistant｜><think>\n")
