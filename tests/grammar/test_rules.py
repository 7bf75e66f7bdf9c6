"""Lark grammars and regular expressions, and what is refused of all rules."""

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from grammar.walk import CHAT, TEXT, accepts, grammars, tokenizer
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.errors import InputError
from mistral_portable.grammar import Grammars
from mistral_portable.grammar.texts import MOST_BYTES

PATTERNS = (r"(yes|no)", r"[a-c]{2,4}x?", r" +a", r"\d{3}-\d{2}", r"\w+/\w+", "a\nb*", r'a*/\n"?', "é+😀?")


@given(st.sampled_from(PATTERNS), st.text(st.sampled_from('abcyesno 0129-/\n"é😀x٣'), max_size=7), st.booleans())
def test_a_regex_is_for_the_whole_text(pattern: str, text: str, begins: bool) -> None:
    expected = re.fullmatch(pattern, text, re.ASCII) is not None or (
        pattern == "é+😀?" and bool(re.fullmatch(pattern, text))
    )
    assert accepts(grammars().compile(regex=pattern), text, CHAT if begins else TEXT) == expected


@given(st.sampled_from(PATTERNS), st.data(), st.sampled_from([TEXT, CHAT]))
def test_every_match_of_a_regex_is_accepted(pattern: str, data: st.DataObject, prompt: list[int]) -> None:
    text = data.draw(st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True))
    assert accepts(grammars().compile(regex=pattern), text, prompt)


@given(st.text(st.sampled_from("ab()"), max_size=8), st.sampled_from([TEXT, CHAT]))
def test_a_grammar_counts_what_no_regex_can(text: str, prompt: list[int]) -> None:
    grammar = grammars().compile(grammar='start: "a" | "(" start ")"')
    inside = text.strip("()")
    assert accepts(grammar, text, prompt) == (
        inside == "a" and text == text.count("(") * "(" + "a" + text.count("(") * ")"
    )


def test_special_tokens_come_only_where_a_grammar_names_them() -> None:
    names = tokenizer("tiny")
    special = [token for token in range(names.vocab_size) if names.is_special(token)]
    texts: list[dict[str, Any]] = [
        {"schema": {"type": "string"}},
        {"regex": r"(?s:.)*"},
        {"grammar": r"start: /(?s:.)*/"},
    ]
    for rule in texts:
        for prompt in (TEXT, CHAT):
            constraint = grammars().compile(**rule).begin(prompt)
            for _ in range(4):
                allowed = constraint.allowed()
                assert [token for token in special if allowed[token]] in ([], [names.eos_id])
                constraint.accept(max(set(allowed.nonzero()[0].tolist()) - set(special)))
    calls = names.chat([{"role": "user", "content": "Hi"}], tools=None)
    constraint = grammars().compile(grammar='start: <TOOL_CALLS> "a"').begin(calls)
    tool_calls = next(token for token in special if names.decode([token], skip_special_tokens=False) == "[TOOL_CALLS]")
    assert constraint.forced == tool_calls
    constraint.accept(tool_calls)
    constraint.accept(names.encode("xa", bos=False)[-1])
    assert constraint.forced == names.eos_id


def test_the_end_token_amid_a_grammar_does_not_end_the_text() -> None:
    with pytest.raises(InputError, match="no token"):
        grammars().compile(grammar='start: </s> "a"')


def test_behind_the_end_and_of_what_is_not_allowed_nothing_is_accepted() -> None:
    constraint = grammars().compile(regex="a").begin(TEXT)
    before = constraint.allowed()
    for token in (*(~before).nonzero()[0][:50].tolist(), -1, 10**6):
        with pytest.raises(InputError, match=f"token {token} is not allowed"):
            constraint.accept(token)
    assert (constraint.allowed() == before).all()
    constraint.accept(int(before.nonzero()[0][0]))
    end = constraint.forced
    assert end == tokenizer("tiny").eos_id
    constraint.accept(end)
    assert constraint.forced is None
    assert not constraint.allowed().any()
    with pytest.raises(InputError, match="not allowed"):
        constraint.accept(end)


BAD: list[dict[str, Any]] = [
    {"regex": "("},
    {"regex": "(?=a)b"},
    {"regex": r"[^\s\S]"},
    {"regex": ""},
    {"regex": 3},
    {"regex": "a\ud800"},
    {"grammar": "start: foo"},
    {"grammar": "begin: /a/"},
    {"grammar": "start: start"},
    {"grammar": "\0"},
    {"grammar": '{"grammars": [{"json_schema": {}}]}'},
    {"grammar": 'start: @other "a"'},
    {},
    {"regex": "a", "schema": {}},
]
HUGE: list[dict[str, Any]] = [
    {"regex": "a" * (MOST_BYTES + 1)},
    {"grammar": 'start: "' + "a" * MOST_BYTES + '"'},
    {"schema": {"enum": ["a" * MOST_BYTES]}},
    {"schema": '{"items":' * 5000 + "{}" + "}" * 5000},
    {"schema": {"type": "object", "properties": {f"p{n}": {"enum": list(range(n, n + 20))} for n in range(900)}}},
]
ALTERNATIVES = [
    {"anyOf": [{"required": [f"{i}.{j}"], "properties": {f"{i}.{j}": {}}} for j in range(4)]} for i in range(12)
]
CATASTROPHIC: list[dict[str, Any]] = [
    {"schema": {"allOf": ALTERNATIVES}},
    {"schema": {"allOf": ALTERNATIVES[:6]}},
    {"grammar": "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "x"'},
    {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    {"regex": "(" * 20_000 + "a" + ")" * 20_000},
    {"schema": {"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(2000)}}},
]


@pytest.mark.parametrize("rule", [*BAD, *HUGE, *CATASTROPHIC], ids=lambda rule: str(rule)[:40])
def test_a_bad_a_huge_and_a_catastrophic_rule_are_refused_in_one_line(rule: dict[str, Any]) -> None:
    with pytest.raises(InputError) as raised:
        grammars().compile(**rule)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


CHAINS: list[dict[str, Any]] = [
    {"grammar": "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(5000)) + '\na5000: "x"'},
    {"grammar": "start: A0\n" + "\n".join(f"A{i}: A{i + 1}" for i in range(5000)) + '\nA5000: "x"'},
    {
        "schema": {
            "$ref": "#/$defs/0",
            "$defs": {str(i): {"allOf": [{"$ref": f"#/$defs/{i + 1}"}]} for i in range(1300)} | {"1300": {"const": 1}},
        }
    },
]


@pytest.mark.parametrize("rule", CHAINS, ids=lambda rule: str(rule)[:40])
def test_long_chains_of_references_overflow_no_stack(rule: dict[str, Any]) -> None:
    grammar = grammars().compile(**rule)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(accepts(grammar, "1" if "schema" in rule else "x")))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_text_that_becomes_too_complex_is_an_error_and_no_end() -> None:
    grammar = grammars().compile(grammar='start: e\ne: e e | e e e | "a" | "b" | ')
    with pytest.raises(InputError, match="max is 1000"):
        accepts(grammar, 500 * "ab")


def test_the_newest_rules_are_kept() -> None:
    own = Grammars(tokenizer("tiny"), {2})
    first, second = own.compile(regex="a"), own.compile(regex="b")
    for number in range(31):
        assert own.compile(regex="a") is first
        own.compile(regex=f"c{number}")
    assert own.compile(regex="b") is not second
    assert own.compile(schema={"const": "a"}) is not own.compile(schema={"const": "b"})


def test_threads_share_rules_and_go_their_own_ways() -> None:
    own = Grammars(tokenizer("tiny"), {tokenizer("tiny").eos_id})

    def walk(number: int) -> bool:
        grammar = own.compile(regex="[ab]{1,40}" if number % 2 else "[bc]{1,40}")
        return accepts(grammar, "ab"[number % 2] * 39 + "b") == bool(number % 2)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(walk, range(64)))


def test_without_the_package_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import mistral_portable as mp\n"
        "from mistral_portable.errors import BackendError\n"
        "try: mp.load('tiny', backend='reference').generate('a', regex='b')\n"
        "except BackendError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "pip install 'mistral-portable[server]'" in done.stdout
