"""Parsers: deltas, token by token, add up to what mistral-common's parsers find in the whole answer."""

import json
from typing import Any

import pytest
from answers.drawn import answers, asks_for_ids, parse, parts, texts, whole
from answers.scripted import written
from answers.versions import VERSIONS, WITH_CALLS, WITH_REASONING, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.answers import (
    CallArguments,
    CallBegin,
    CallEnd,
    CallFailed,
    ChatParser,
    Content,
    Reasoning,
    join_deltas,
)
from mistral_portable.tokenizer import is_call_id

PARIS = {"city": "Paris"}


def squashed(text: str) -> str:
    """Return the text without spaces."""
    return text.replace(" ", "")


@pytest.mark.parametrize("version", VERSIONS)
@given(st.data())
def test_deltas_add_up_to_the_parse_of_the_whole(version: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(version)
    answer = data.draw(answers(version))
    tokens = answer.tokens(tokenizer, with_ids=data.draw(st.booleans()) or asks_for_ids(version))
    found = parts(tokenizer, tokens)
    content, reasoning, calls = whole(tokenizer, tokens)
    assert (found.text, found.reasoning, found.call_error) == (content, reasoning, "")
    assert [(call.name, json.loads(call.arguments)) for call in found.tool_calls] == calls
    assert calls == [(name, arguments) for _, name, arguments in answer.calls]
    ids = [call.id for call in found.tool_calls]
    assert all(map(is_call_id, ids))
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("version", ["v3", "v7", "tekken 240911", "v11"])
@given(st.data())
def test_ids_are_those_that_the_model_wrote(version: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(version)
    answer = data.draw(answers(version))
    found = parts(tokenizer, answer.tokens(tokenizer))
    assert [call.id for call in found.tool_calls] == [id for id, _, _ in answer.calls]


@pytest.mark.parametrize("version", VERSIONS)
@given(st.data())
def test_an_answer_cut_anywhere_loses_nothing(version: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(version)
    answer = data.draw(answers(version))
    tokens = answer.tokens(tokenizer)
    cut = tokens[: data.draw(st.integers(0, len(tokens)))]
    found = parts(tokenizer, cut)
    content, reasoning, calls = whole(tokenizer, cut)
    assert found.reasoning == reasoning
    own = [(call.name, json.loads(call.arguments)) for call in found.tool_calls]
    if found.call_error and tokenizer.version in ("v2", "v3", "v7"):
        # The list's complete calls count, though mistral-common finds no list.
        assert own == [(name, arguments) for _, name, arguments in answer.calls[: len(own)]]
        # Behind [TOOL_CALLS] sentencepiece writes a space, which a text of its own begins without.
        rest = squashed(found.text).removeprefix(squashed(answer.content))
        assert squashed(content).endswith(rest)
        assert own or squashed(found.text) == squashed(content)
    else:
        assert (found.text, own) == (content, calls)


@pytest.mark.parametrize("version", VERSIONS)
@given(st.data())
def test_what_has_been_given_is_final(version: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(version)
    tokens = data.draw(answers(version)).tokens(tokenizer)
    deltas = parse(tokenizer, tokens)
    parser = ChatParser(tokenizer, [tokenizer.bos_id])
    early = [delta for token in tokens[: data.draw(st.integers(0, len(tokens)))] for delta in parser.push(token)]
    strip = [(type(delta), getattr(delta, "text", None)) for delta in early]
    assert strip == [(type(delta), getattr(delta, "text", None)) for delta in deltas[: len(early)]]


@pytest.mark.parametrize("version", VERSIONS)
@given(st.data())
def test_any_tokens_are_an_answer(version: str, data: st.DataObject) -> None:
    """Whatever a model writes, no text is lost, and calls have arguments that parse."""
    tokenizer = tokenizer_of(version)
    control = [tokenizer.control_id(f"[{name}]") for name in ("TOOL_CALLS", "ARGS", "CALL_ID", "THINK", "/THINK")]
    markers = st.sampled_from([id for id in control if id is not None] or [tokenizer.bos_id])
    pieces = st.sampled_from(["[", "{", "}", '"a"', ":", ", ", "name", '{"name": "f", "arguments": {}}', "]", " ", "1"])
    some = markers.map(lambda id: [id]) | (pieces | texts).map(lambda text: tokenizer.encode(text, bos=False))
    tokens = [token for part in data.draw(st.lists(some, max_size=12)) for token in part]
    found = parts(tokenizer, tokens)
    for call in found.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
    everything = found.text + found.reasoning + "".join(call.name + call.arguments for call in found.tool_calls)
    if not found.tool_calls:
        assert sorted(everything.replace(" ", "")) == sorted(tokenizer.decode(tokens).replace(" ", ""))


@pytest.mark.parametrize("version", ["v11", "v13", "v15"])
def test_arguments_come_in_pieces(version: str) -> None:
    tokenizer = tokenizer_of(version)
    tokens = written(tokenizer, "[TOOL_CALLS]", "weather", "[ARGS]", json.dumps(PARIS))
    begin, *pieces, end = parse(tokenizer, tokens)
    assert isinstance(begin, CallBegin)
    assert end == CallEnd(0)
    assert (begin.index, begin.name) == (0, "weather")
    assert len(pieces) > 2
    assert all(isinstance(piece, CallArguments) and piece.index == 0 for piece in pieces)


def test_a_made_id_depends_on_prompt_and_index() -> None:
    tokenizer = tokenizer_of("v13")
    call = written(tokenizer, "[TOOL_CALLS]", "weather", "[ARGS]", "{}")

    def ids(prompt: str) -> list[str]:
        return [call.id for call in join_deltas(parse(tokenizer, call * 2, tokenizer.encode(prompt))).tool_calls]

    assert ids("Hi") == ids("Hi")
    assert len({*ids("Hi"), *ids("Yo")}) == 4


def test_an_id_that_comes_again_is_replaced() -> None:
    tokenizer = tokenizer_of("v11")
    call = written(tokenizer, "[TOOL_CALLS]", "weather", "[CALL_ID]", "abcdefgh1", "[ARGS]", "{}")
    first, second = parts(tokenizer, call * 2).tool_calls
    assert first.id == "abcdefgh1"
    assert is_call_id(second.id)
    assert second.id != first.id


@pytest.mark.parametrize(
    ("version", "answer", "text", "reason"),
    [
        ("v3", ["[TOOL_CALLS]", "Hello"], "Hello", "call 0: 'H' instead of ["),
        ("v3", ["[TOOL_CALLS]", '[{"name": "f", "arguments": {"a"'], '[{"name": "f", "arguments": {"a"', "cut off"),
        ("v3", ["[TOOL_CALLS]", '[{"name": "f"}]'], '[{"name": "f"}]', "the arguments are no JSON object"),
        ("v3", ["[TOOL_CALLS]", '[{"arguments": {}}]'], '[{"arguments": {}}]', "the name null"),
        (
            "v7",
            ["[TOOL_CALLS]", '[{"name": "a b", "arguments": {}}]'],
            '[{"name": "a b", "arguments": {}}]',
            "the name",
        ),
        ("v7", ["[TOOL_CALLS]", "[3]"], "[3]", "no JSON object"),
        ("v7", ["Hm", "[TOOL_CALLS]"], "Hm", "call 0: the list is cut off"),
        ("v11", ["[TOOL_CALLS]", "f", "[CALL_ID]", "abcdefgh1"], "fabcdefgh1", 'call 0 "f": it has no arguments'),
        ("v11", ["[TOOL_CALLS]", "f", "[ARGS]", "[CALL_ID]", "{}"], "f{}", "out of order"),
        ("v13", ["[TOOL_CALLS]", "Hello there"], "Hello there", "what follows [TOOL_CALLS] is no function's name"),
        ("v13", ["[TOOL_CALLS]", "f", "[ARGS]", "[1]"], "f[1]", 'call 0 "f": the arguments are no JSON object'),
        ("v13", ["[TOOL_CALLS]", "f", "[ARGS]", '{"a": NaN}'], 'f{"a": NaN}', "NaN is no JSON value"),
        ("v13", ["[TOOL_CALLS]", "f", "[ARGS]", '{"a": ]'], 'f{"a": ]', "no JSON"),
        ("v13", ["[TOOL_CALLS]", "f", "[ARGS]", '{"a": "'], 'f{"a": "', 'call 0 "f": the arguments are cut off'),
        ("v13", ["[TOOL_CALLS]", "[ARGS]", "{}"], "{}", "no function's name"),
        ("v13", ["[TOOL_CALLS]", "f", "[ARGS]", '{"a":' * 3000 + "1" + "}" * 3000], None, "nested too deeply"),
    ],
)
def test_what_does_not_parse_is_content(version: str, answer: list[str], text: str | None, reason: str) -> None:
    tokenizer = tokenizer_of(version)
    found = parts(tokenizer, written(tokenizer, *answer))
    assert found.text.strip() == ("f" + answer[-1] if text is None else text)
    assert found.tool_calls == ()
    assert reason in found.call_error
    assert "\n" not in found.call_error


def test_calls_beside_one_that_does_not_parse_stand() -> None:
    tokenizer = tokenizer_of("v13")
    good = ["[TOOL_CALLS]", "f", "[ARGS]", "{}"]
    deltas = parse(tokenizer, written(tokenizer, *good, "[TOOL_CALLS]", "g", "[ARGS]", '{"a": 1', *good))
    found = join_deltas(deltas)
    assert [(call.name, call.arguments) for call in found.tool_calls] == [("f", "{}"), ("f", "{}")]
    assert [delta.index for delta in deltas if isinstance(delta, CallBegin)] == [0, 1, 2]
    assert [delta.index for delta in deltas if isinstance(delta, CallFailed)] == [1]
    assert [delta.index for delta in deltas if isinstance(delta, CallEnd)] == [0, 2]
    assert found.text == 'g{"a": 1'


def test_text_behind_calls_is_content() -> None:
    for version in ("v7", "v13"):
        tokenizer = tokenizer_of(version)
        calls = {"v7": ['[{"name": "f", "arguments": {}}]\n\nDone. '], "v13": ["f", "[ARGS]", "{}\n\nDone. "]}[version]
        found = parts(tokenizer, written(tokenizer, "[TOOL_CALLS]", *calls))
        assert (found.text.strip(), len(found.tool_calls)) == ("Done.", 1)


@pytest.mark.parametrize("version", WITH_REASONING)
def test_reasoning_may_be_open_at_both_ends(version: str) -> None:
    tokenizer = tokenizer_of(version)
    prompt = [*tokenizer.chat([{"role": "user", "content": "Hi"}]), *written(tokenizer, "[THINK]", "So")]
    deltas = parse(tokenizer, written(tokenizer, " far", "[/THINK]", "Yo", "[THINK]", "again"), prompt)
    assert deltas == [Reasoning(" far"), Content("Yo"), Reasoning("again")]


@pytest.mark.parametrize("version", VERSIONS)
@given(texts)
def test_a_text_that_spells_markers_is_content(version: str, text: str) -> None:
    tokenizer = tokenizer_of(version)
    tokens = tokenizer.encode("[TOOL_CALLS][{}] [THINK]" + text, bos=False)
    found = parts(tokenizer, tokens)
    assert found.text == tokenizer.decode(tokens)
    assert (found.reasoning, found.tool_calls, found.call_error) == ("", (), "")


@pytest.mark.parametrize("version", WITH_CALLS)
def test_markers_are_in_no_delta(version: str) -> None:
    tokenizer = tokenizer_of(version)
    markers: list[Any] = ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "[INST]", "[TOOL_RESULTS]"]
    known = [marker for marker in markers if tokenizer.control_id(marker) is not None]
    found = parts(tokenizer, [token for marker in known for token in written(tokenizer, marker, "x")])
    assert "[" not in found.text + found.reasoning
