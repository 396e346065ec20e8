"""Chat templates for files without one: DeepSeek-V3's form, or V2's if the vocabulary lacks V3's markers."""

from __future__ import annotations

from trimaran_gateway.text.vocabulary import Markers

_V3 = """\
{%- set state = namespace(system='', outputs=false) -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set state.system = state.system + ('\\n\\n' if state.system else '') + message['content'] -%}
{%- endfor -%}
{{- bos_token + state.system -}}
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{{- ('' if state.outputs else '<｜tool▁outputs▁begin｜>') -}}
{{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' -}}
{%- set state.outputs = true -%}
{%- elif message['role'] in ('user', 'assistant') -%}
{{- '<｜tool▁outputs▁end｜>' if state.outputs else '' -}}
{%- if message['role'] == 'user' -%}
{{- '<｜User｜>' + message['content'] -}}
{%- else -%}
{{- '' if state.outputs else '<｜Assistant｜>' -}}
{{- (message['content'] or '').split('</think>')[-1] -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<｜tool▁calls▁begin｜>' if loop.first else '\\n' -}}
{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call['function']['name'] + '\\n```json\\n' -}}
{{- call['function']['arguments'] + '\\n```<｜tool▁call▁end｜>' -}}
{{- '<｜tool▁calls▁end｜>' if loop.last else '' -}}
{%- endfor -%}
{{- eos_token -}}
{%- endif -%}
{%- set state.outputs = false -%}
{%- endif -%}
{%- endfor -%}
{{- '<｜tool▁outputs▁end｜>' if state.outputs else '' -}}
{{- '<｜Assistant｜>' if add_generation_prompt and not state.outputs else '' -}}
"""

_V2 = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- 'User: ' + message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- 'Assistant: ' + (message['content'] or '') + eos_token -}}
{%- else -%}
{{- message['content'] + '\\n\\n' -}}
{%- endif -%}
{%- endfor -%}
{{- 'Assistant:' if add_generation_prompt else '' -}}
"""


def default_template(markers: Markers) -> str:
    """The template to use when the file has none."""
    return _V2 if markers.user is None else _V3
