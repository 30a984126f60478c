"""Chat templates: byte for byte what transformers renders, and never without end."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from tiny import tiny_tokenizer

from rlaif.engines.chat import ChatFormat, TemplateRefusal
from rlaif.engines.chat_template import ChatTemplate
from rlaif.errors import ModelError
from rlaif.types import Message

STYLES = {
    "ChatML": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "SmolLM2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "Llama 2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}"
    "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "Llama 3": "{{- bos_token }}\n{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{%- endif %}\n"
    "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content']|trim %}\n"
    "    {%- set messages = messages[1:] %}\n{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}\n{%- if tools is not none %}{{- 'Tools' }}{%- endif %}\n"
    "{{- 'Today Date: ' + date_string + '\n\n' }}\n{{- system_message }}\n{{- '<|eot_id|>' }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n{%- endif %}\n",
    "Gemma, no system": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "Qwen 3, thinking": "{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.multi_step_tool and message.role == 'user' and message.content is string %}{%- set ns.multi_step_tool = false %}"
    "{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}{%- for message in messages %}{%- if message.role == 'assistant' %}"
    "{%- set content = message.content %}{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}{{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>' ~ message.role ~ '\n' ~ "
    "message.content ~ '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
    "Zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == "
    "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and "
    "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "Phi 3, joined pieces": "{% for message in messages %}{{ '<|' ~ message['role'] ~ '|>\n' ~ message['content'] ~ '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "DeepSeek, loop controls": "{%- for message in messages %}{%- if message['role'] == 'system' %}{{ message['content'] }}"
    "{%- continue %}{%- endif %}{%- if loop.index > 40 %}{%- break %}{%- endif %}{{- '<｜' + message['role'] | capitalize + '｜>' + "
    "message['content'] }}{%- endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
    "generation tag": "{% for m in messages %}{% if m.role == 'assistant' %}{% set x = 1 %}{% generation %}{% set x = 2 %}{{ m.content }}"
    "{% endgeneration %}{{ x }}{% else %}{{ '[' ~ m.role ~ ']' ~ m.content }}{% endif %}{% endfor %}{{ 'A:' if add_generation_prompt }}",
    "filters and JSON": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{{ m.role | upper | replace('U', 'u') }}"
    "{{ m.content | truncate(9) }}{{ missing }}{{ m.tool_calls }}{{ '%s-%03d' | format(m.role, loop.index) }}{% endfor %}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "macros, slices, dict": "{% macro turn(m, n=1) %}{{ m.role }}{{ m.content[:7] }}{{ n * 2 }}{{ 'ab' * n }}{% endmacro %}"
    "{% set kinds = dict(user='U', assistant='A') %}{% for m in messages %}{{ turn(m, loop.index) }}{{ kinds.get(m.role, '?') }}"
    "{{ kinds.items() | list | length }}{% endfor %}{% for k, v in kinds.items() %}{{ k }}={{ v }} {% endfor %}{{ range(3) | sum }}",
}
SYSTEM = {"role": "system", "content": "Be kind."}
CHATS = [
    [{"role": "user", "content": "Hi <b> & 'you' \u2014 \"there\"\n  two lines "}],
    [{"role": "user", "content": "One"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTwo"}, {"role": "user", "content": "Three"}],
    [SYSTEM, {"role": "user", "content": "Hi"}],
    [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    [{"role": "assistant", "content": "I begin"}, {"role": "user", "content": "So?"}],
]  # fmt: skip


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("style", STYLES)
def test_it_renders_what_transformers_renders(style: str) -> None:
    tokenizer = with_template(STYLES[style])
    ours = ChatTemplate(tokenizer)
    same = 0
    for turns in CHATS:
        for open_turn in (True, False):
            for more in ({}, {"date_string": "1 May 2025"}, {"enable_thinking": False}):
                try:
                    wanted = tokenizer.apply_chat_template(
                        turns, tokenize=False, add_generation_prompt=open_turn, **more
                    )
                except (jinja2.TemplateError, TypeError) as error:
                    with pytest.raises(type(error), match=str(error)[:20].replace("(", ".")):
                        ours.render(turns, open_turn=open_turn, **more)
                    continue
                assert ours.render(turns, open_turn=open_turn, **more) == wanted
                same += 1
    assert same >= 6


ENDLESS = {
    "a loop": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}{{ messages[0].content }}",
    "a large range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "a product": "{{ 'x' * 10 ** 10 }}",
    "doubling": "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
    "joining": "{% set n = namespace(t='x') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "a width": "{{ '%1000000000d' % 1 }}{{ 'x' | center(10 ** 9) }}",
    "a macro that calls itself": "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
}


@pytest.mark.parametrize("way", ENDLESS)
def test_a_template_without_end_is_refused_by_name(way: str) -> None:
    form = ChatFormat(with_template(ENDLESS[way]), name="some/model")
    with pytest.raises(TemplateRefusal, match="some/model: the chat template refuses the turns user"):
        form.render([Message("user", "Hi")])


def test_a_template_that_leaves_out_the_prompt_is_refused_at_loading() -> None:
    with pytest.raises(ModelError, match="leaves out what the user says"):
        ChatFormat(with_template("{{ messages | length }} messages. Assistant:"), name="some/model")
    with pytest.raises(ModelError, match="leaves out what the user says"):
        ChatFormat(with_template("{{ bos_token }}"))


def test_what_is_no_template_is_said() -> None:
    with pytest.raises(ModelError):
        ChatFormat(with_template("{% for %}")).render([Message("user", "Hi")])
