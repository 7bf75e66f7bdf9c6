"""Chat templates of model files are run, but reach nothing, and are stopped."""

import json
import os
import threading
from pathlib import Path

import pytest
from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
from tokenizer.finetunes import CHATML
from tokenizer.strategies import Message, assistant, user
from tokenizer.vocabularies import FILES, TEMPLATES, from_file

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer.common import CommonTokenizer
from mistral_portable.tokenizer.own_template import is_mistrals
from mistral_portable.tokenizer.template import ChatTemplate

CHAT = [user("Hi ☃")]


def render(template: str) -> str:
    return ChatTemplate({"default": template}, {"bos_token": "<s>"}).render(CHAT)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}", "<s>Hi ☃"),
        ("{{ [1, {'a': 'é<'}] | tojson }}", '[1, {"a": "é<"}]'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}g{% endgeneration %}", "g"),
        ("{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}", "2"),
        ("{{ strftime_now('%%') }}", "%"),
        ("  {% if true %}\n  a\n  {% endif %}\n", "  a\n"),
        ("{{ tools is none and documents is none and add_generation_prompt }}", "True"),
    ],
)
def test_what_templates_have(template: str, text: str) -> None:
    assert render(template) == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles\nmust alternate') }}", "refuses this chat: roles must alternate"),
        ("{% if %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% set n = namespace() %}{% set n._a = 1 %}", "no place for '_a'"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nested too deeply"),
        ("{{ 'a' * 9999999999 }}", "too much memory"),
        ("{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}", "more than 16777216 characters"),
    ],
)
def test_what_templates_have_not(template: str, reason: str) -> None:
    with pytest.raises(TokenizerError, match=reason) as caught:
        render(template)
    assert "\n" not in str(caught.value)


def test_a_template_that_does_not_end_is_stopped() -> None:
    """Also while it is compiled. The next chat has a new process."""
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
    template = "{% if messages[0].content == 'loop' %}" + loops + "{% endfor %}{% endif %}a"
    chats = ChatTemplate({"default": template}, {})
    with pytest.raises(TokenizerError, match="was stopped: it takes more than 2 s of CPU time"):
        chats.render([user("loop")])
    assert chats.render(CHAT) == "a"


def test_threads_share_a_template() -> None:
    chats, found = ChatTemplate({"default": CHATML}, {}), dict[int, str]()
    ask = [threading.Thread(target=lambda n=n: found.update({n: chats.render([user(str(n))])})) for n in range(8)]
    for thread in ask:
        thread.start()
    for thread in ask:
        thread.join()
    assert found == {n: f"<|im_start|>user\n{n}<|im_end|>\n<|im_start|>assistant\n" for n in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on Windows")
def test_a_forked_process_has_a_template_of_its_own() -> None:
    chats = ChatTemplate({"default": "{{ messages[0].content }}"}, {})
    assert chats.render([user("parent")]) == "parent"
    child = os.fork()
    if child == 0:
        os._exit(0 if chats.render([user("child")]) == "child" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert chats.render([user("again")]) == "again"


@pytest.mark.parametrize("messages", [[], ["x"], [{"content": "x"}], [user([{"type": "image"}])], [user(object())]])
def test_malformed_messages_are_refused(messages: list[object]) -> None:
    with pytest.raises(TokenizerError, match=r"conversation is empty|message 0"):
        ChatTemplate({"default": "x"}, {}).render(messages)  # type: ignore[arg-type]


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    "{% if loop.previtem is defined and loop.previtem.role == m.role %}{{ raise_exception('no turn') }}{% endif %}"
    "[{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}]{{ m.content }}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "s"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "r", "tool_call_id": "1"}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([user("a"), user("b")], "[user]a\n\nb"),
        ([user("a"), assistant("b"), SYSTEM, user("c")], "[system]s[user]a[assistant]b[user]c"),
        ([SYSTEM, {"role": "developer", "content": "t"}, user("a")], "[system]s\n\nt[user]a"),
        ([user("a"), assistant("b"), assistant("c")], "[user]a[assistant]b\n\nc"),
        ([user("a"), CALLS, RESULT, user("b"), user("c")], "[user]a[assistant][tool f]r[user]b\n\nc"),
        ([user("a"), CALLS, {**RESULT, "name": "g"}], "[user]a[assistant][tool g]r"),
        ([user("a"), CALLS, {**RESULT, "tool_call_id": None}], "[user]a[assistant][tool]r"),
    ],
)
def test_a_chat_that_is_refused_is_written_in_a_plainer_order(messages: list[Message], text: str) -> None:
    before = json.dumps(messages)
    assert ChatTemplate({"default": STRICT}, {}).render(messages) == text
    assert json.dumps(messages) == before


@pytest.mark.parametrize("messages", [[CALLS, CALLS], [RESULT, RESULT], [SYSTEM, RESULT, SYSTEM, RESULT]])
def test_what_is_still_refused_has_the_first_reason(messages: list[Message]) -> None:
    first = "late" if messages[0] is SYSTEM else "no turn"
    with pytest.raises(TokenizerError, match=f"refuses this chat: {first}"):
        ChatTemplate({"default": STRICT}, {}).render(messages)


def test_a_template_that_takes_any_order_has_it_as_it_is() -> None:
    messages = [user("a"), user("b"), SYSTEM, user("c")]
    text = ChatTemplate({"default": "{% for m in messages %}{{ m.role[0] }}{{ m.content }} {% endfor %}"}, {})
    assert text.render(messages) == "ua ub ss uc "


LLAMA = (
    "{% for m in messages %}{% if m.role == 'system' %}[INST] <<SYS>>{{ m.content }}<</SYS>>{% else %}{{ m.content }}"
)


@pytest.mark.parametrize("name", FILES)
def test_mistrals_templates_are_recognized(name: str) -> None:
    common = from_file(name)
    assert isinstance(common, CommonTokenizer)
    template = TEMPLATES[name]
    assert is_mistrals(template, common)
    assert not is_mistrals(LLAMA + "{% endif %}{% endfor %}", common)
    assert not is_mistrals(CHATML + "{# [INST] #}", common)
    assert not is_mistrals("[INST]{% if %}", common)


@pytest.mark.parametrize("name", FILES)
def test_mistral_commons_own_templates_are_recognized(name: str) -> None:
    common = from_file(name)
    assert isinstance(common, CommonTokenizer)
    assert is_mistrals(convert_tokenizer_to_chat_template(Path(FILES[name])), common)
