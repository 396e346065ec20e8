"""The chat template, in the manner of DeepSeek-R1's, and the prompts it renders."""

from __future__ import annotations

from functools import lru_cache

import jinja2

from .samples import Sample

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, END_THINK = "<think>", "</think>"

# BOS, then all system texts; history without its reasoning; tool calls and outputs in DeepSeek's format.
# After a tool's output the answer follows at once, with neither the assistant's marker nor `<think>`.
CHAT_TEMPLATE = """\
{%- if add_generation_prompt is not defined %}{% set add_generation_prompt = false %}{% endif -%}
{%- set state = namespace(system='', outputs=false) -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set state.system = state.system + ('\\n\\n' if state.system else '') + message['content'] -%}
{%- endfor -%}
{{- bos_token + state.system -}}
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{{- '' if state.outputs else '<｜tool▁outputs▁begin｜>' -}}
{{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' -}}
{%- set state.outputs = true -%}
{%- elif message['role'] == 'user' -%}
{{- '<｜tool▁outputs▁end｜>' if state.outputs else '' -}}
{%- set state.outputs = false -%}
{{- '<｜User｜>' + message['content'] -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<｜tool▁outputs▁end｜>' if state.outputs else '<｜Assistant｜>' -}}
{%- set state.outputs = false -%}
{%- set content = message['content'] or '' -%}
{{- content.split('</think>')[-1] | trim if '</think>' in content else content -}}
{%- if message['tool_calls'] -%}
{{- '<｜tool▁calls▁begin｜>' -}}
{%- for call in message['tool_calls'] -%}
{%- set arguments = call['function']['arguments'] -%}
{{- '' if loop.first else '\\n' -}}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call['function']['name'] + '\\n```json\\n' -}}
{{- arguments if arguments is string else arguments | tojson -}}
{{- '\\n```<｜tool▁call▁end｜>' -}}
{%- endfor -%}
{{- '<｜tool▁calls▁end｜>' -}}
{%- endif -%}
{{- '<｜end▁of▁sentence｜>' -}}
{%- endif -%}
{%- endfor -%}
{%- if state.outputs -%}
{{- '<｜tool▁outputs▁end｜>' -}}
{%- elif add_generation_prompt -%}
{{- '<｜Assistant｜><think>\\n' -}}
{%- endif -%}
"""


@lru_cache(maxsize=1)
def _compiled() -> jinja2.Template:
    # The output is a prompt, not HTML: nothing to escape.
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(CHAT_TEMPLATE)  # noqa: S701


def render_prompt(sample: Sample) -> str:
    """The text the model reads before it writes `sample.completion`."""
    text: str = _compiled().render(messages=sample.messages, bos_token=BOS, add_generation_prompt=True)
    return text
