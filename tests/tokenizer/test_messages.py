"""Messages as real clients send them: what each becomes, and what a version cannot say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from answers.versions import LATER, VERSIONS, WITH_CALLS, WITH_REASONING, tekken_with, tokenizer_of
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from tokenizer.strategies import TOOL, TOOL_CHAT, Message, assistant, user

from mistral_portable.errors import TokenizerError
from mistral_portable.tokenizer import TokenizerFile, load_tokenizer
from mistral_portable.tokenizer.to_gguf import gguf_vocabulary

NEWER = ["v3", "v7", "tekken 240911", "v11", "v13", "v15"]
ids = st.text(max_size=12) | st.from_regex(r"call_[a-zA-Z0-9]{24}", fullmatch=True)


def call(id: Any, name: str = "weather", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*made: Any, content: str | None = None) -> Message:
    return {"role": "assistant", "content": content, "tool_calls": list(made)}


def result(id: Any, content: str = "rain") -> Message:
    return {"role": "tool", "content": content, "tool_call_id": id}


def spelled(tokenizer: Any, messages: list[Any]) -> str:
    """Return the conversation's prompt, with the names of its control tokens."""
    inner = tokenizer.mistral.instruct_tokenizer.tokenizer
    return str(inner.decode(tokenizer.chat(messages), SpecialTokenPolicy.KEEP)).replace("▁", " ")


@pytest.mark.parametrize("version", VERSIONS)
def test_content_in_parts_is_text(version: str) -> None:
    tokenizer = tokenizer_of(version)
    joint = "" if version == "v15" else "\n\n"
    parts = [{"type": "text", "text": "Hi"}, {"type": "input_text", "text": "there"}, "!", {"type": "text", "text": ""}]
    assert tokenizer.chat([user(parts)]) == tokenizer.chat([user(f"Hi{joint}there{joint}!")])
    said = [{"type": "output_text", "text": "Yo"}]
    asked = [user("Hi"), {"role": "system", "content": parts[:1]}, user("?")]
    assert tokenizer.chat([user("Hi"), assistant(said), user("?")]) == tokenizer.chat(
        [user("Hi"), assistant("Yo"), user("?")]
    )
    assert tokenizer.chat(asked) == tokenizer.chat([user("Hi"), {"role": "system", "content": "Hi"}, user("?")])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_developer_is_the_system(version: str) -> None:
    tokenizer = tokenizer_of(version)
    prompts = [tokenizer.chat([{"role": role, "content": "Be brief."}, user("Hi")]) for role in ("developer", "system")]
    assert prompts[0] == prompts[1] != tokenizer.chat([user("Hi")])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_late_system_message_moves_to_the_beginning(version: str) -> None:
    tokenizer = tokenizer_of(version)
    first, late = ({"role": "system", "content": text} for text in ("One.", "Two."))
    chat = [user("Hi"), assistant("Yo")]
    assert tokenizer.chat([first, *chat, late, user("?")]) == tokenizer.chat([first, late, *chat, user("?")])
    if version in NEWER:
        after_result = [*TOOL_CHAT, late, user("?")]
        assert tokenizer.chat(after_result) == tokenizer.chat([late, *TOOL_CHAT, user("?")])


@pytest.mark.parametrize("version", WITH_CALLS)
def test_a_whole_turn_with_a_tool(version: str) -> None:
    """The forms that OpenAI's clients send: ids of theirs, arguments as text, results without a name."""
    tokenizer = tokenizer_of(version)
    id = "call_Zk3aJ5w0XbQ9yT7mP1sLcDfE"
    made = calls(call(id, arguments='{"city": "Paris"}'), content="")
    text = spelled(tokenizer, [user("Weather?"), made, result(id)])
    assert "weather" in text
    assert "rain" in text
    assert id not in text
    if version.startswith(("v3", "v7", "tekken", "v11")):
        found = re.search(r'(?:"id": "|\[CALL_ID\])(\w{9})\b', text)
        assert found is not None
        assert text.count(found[1]) == 2
    as_object = calls(call(id, arguments={"city": "Paris"}), content=None)
    assert spelled(tokenizer, [user("Weather?"), as_object, result(id)]) == text


def test_a_result_without_a_name_has_that_of_its_call() -> None:
    assert '"name": "weather", "content": "rain"' in spelled(
        tokenizer_of("v2"), [user("?"), calls(call("a")), result("a")]
    )


@given(st.lists(ids, min_size=1, max_size=5, unique=True))
def test_ids_are_mapped_one_to_one_and_always_alike(some: list[str]) -> None:
    some = [id for id in some if id not in ("", "null")]
    tokenizer = tokenizer_of("v3")
    turns = [user("?"), calls(*map(call, some)), *map(result, some)] if some else [user("?")]
    text = spelled(tokenizer, turns)
    made, answered = re.findall(r'"id": "(.{9})"', text), re.findall(r'"call_id": "(.{9})"', text)
    assert made == answered
    assert len(set(made)) == len(some)
    again = spelled(tokenizer, [*turns, assistant("Yo"), *turns])
    assert re.findall(r'"id": "(.{9})"', again) == made * 2


def test_ids_of_the_right_form_stay() -> None:
    text = spelled(
        tokenizer_of("v3"), [user("?"), calls(call("abcdefgh1"), call("x")), result("x"), result("abcdefgh1")]
    )
    assert text.count('"abcdefgh1"') == 2


@pytest.mark.parametrize("version", NEWER)
def test_calls_and_results_without_ids(version: str) -> None:
    """Ollama's clients have none."""
    tokenizer = tokenizer_of(version)
    made: list[Message] = [{"function": {"name": name, "arguments": {}}} for name in ("f", "g")]
    answers = [{"role": "tool", "content": "of g", "name": "g"}, {"role": "tool", "content": "of f"}]
    bare = [user("?"), calls(*made), *answers]
    with_ids = [user("?"), calls(call(None, "f"), call("null", "g")), *answers]
    assert tokenizer.chat(bare) == tokenizer.chat(with_ids)
    if version == "v3":
        made_ids = re.findall(r'"id": "(.{9})"', spelled(tokenizer, bare))
        assert re.findall(r'"content": "(.{4})", "call_id": "(.{9})"', spelled(tokenizer, bare)) == [
            ("of g", made_ids[1]),
            ("of f", made_ids[0]),
        ]


@pytest.mark.parametrize("version", NEWER)
def test_calls_in_messages_of_their_own_are_one_message(version: str) -> None:
    tokenizer = tokenizer_of(version)
    results = [result("aaaaaaaa1"), result("aaaaaaaa2")]
    apart = [user("?"), calls(call("aaaaaaaa1")), calls(call("aaaaaaaa2")), *results]
    assert tokenizer.chat(apart) == tokenizer.chat([user("?"), calls(call("aaaaaaaa1"), call("aaaaaaaa2")), *results])


@pytest.mark.parametrize("version", WITH_REASONING)
def test_reasoning_stands_before_the_text(version: str) -> None:
    tokenizer = tokenizer_of(version)
    forms: list[dict[str, Any]] = [
        {"content": "Yo", "reasoning": "Hm"},
        {"content": "Yo", "reasoning_content": "Hm"},
        {"content": "Yo", "reasoning": "Hm", "reasoning_content": "Hm"},
        {"content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Yo"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
                {"type": "text", "text": "Yo"},
            ]
        },
    ]
    for form in forms:
        assert "[THINK]Hm[/THINK]Yo</s>" in spelled(tokenizer, [user("Hi"), {"role": "assistant", **form}, user("?")])
    only = {"role": "assistant", "content": None, "reasoning": "Hm"}
    assert spelled(tokenizer, [user("Hi"), only]).endswith("[/INST][THINK]Hm[/THINK]")
    with_call = calls(call("a")) | {"reasoning": "Hm"}
    assert "[THINK]Hm[/THINK][TOOL_CALLS]weather" in spelled(tokenizer, [user("Hi"), with_call, result("a")])


def test_empty_reasoning_is_none() -> None:
    tokenizer = tokenizer_of("v3")
    said = assistant("Yo") | {"reasoning": "", "reasoning_content": None, "tool_calls": [], "refusal": None}
    assert tokenizer.chat([user("Hi"), said, user("?")]) == tokenizer.chat([user("Hi"), assistant("Yo"), user("?")])


def test_the_callers_messages_are_left_alone() -> None:
    messages = [user("?"), calls(call("a"), content=""), result("a"), {"role": "developer", "content": "x"}, user("?")]
    before = json.dumps(messages)
    tokenizer_of("v3").chat(messages, tools=[TOOL])
    assert json.dumps(messages) == before


@pytest.mark.parametrize(
    ("version", "messages", "reason"),
    [
        ("v1", [user("?"), calls(call("a")), result("a")], "v1: message 1 has tool calls or results, which v1 cannot"),
        ("v3", [user("?"), calls(call("a"), content="So"), result("a")], "v3: message 1 has text beside tool calls"),
        ("v11", [user("?"), assistant("Yo") | {"reasoning": "Hm"}, user("?")], "v11: message 1 has reasoning"),
        (
            "v13 without [THINK]",
            [user("?"), assistant("Yo") | {"reasoning": "Hm"}, user("?")],
            "message 1 has reasoning",
        ),
        ("v2", [user("?"), calls(call("a"), call("b")), result("a"), result("b")], "v2 does not support multiple"),
        ("v13", [user("?"), assistant("Yo") | {"reasoning": "a", "reasoning_content": "b"}], "has reasoning twice"),
        ("v13", [user("?"), assistant("Yo") | {"reasoning": 3}], "has the reasoning 3"),
        (
            "v3",
            [user([{"type": "image_url", "image_url": {"url": "x"}}])],
            "part 0 has the type 'image_url'; only text",
        ),
        ("v3", [user([{"type": "thinking", "thinking": "x"}])], "only an assistant reasons"),
        ("v13", [user("?"), assistant([{"type": "thinking", "thinking": [{"type": "thinking"}]}])], "type 'thinking'"),
        ("v13", [user("?"), assistant([{"type": "thinking"}])], "has the thinking None"),
        ("v3", [user([3])], "message 0 part 0 is 3; pass a mapping"),
        ("v3", [user([{"type": "text", "text": None}])], "part 0 has the text None"),
        ("v3", [user({"text": "Hi"})], "message 0 has the content"),
        ("v3", [user("?"), {"role": "tool", "content": "x"}], "without tool_call_id, and no call waits"),
        ("v3", [user("?"), calls(call("a")), result(5)], "message 2 has the id 5"),
        ("v11", [user("?"), calls(call("a")), result("b")], "message 2 is a result of the call 'b', but none waits"),
        ("v13", [user("?"), calls(call("a")), result("a"), result("a")], "message 3 is a result of the call 'a'"),
        ("v3", [user("?"), calls(call(5))], "message 1 call 0 has the id 5"),
        ("v3", [user("?"), {"role": "assistant", "content": "", "tool_calls": "f"}], "has the tool_calls 'f'"),
    ],
)
def test_what_is_refused(version: str, messages: list[Any], reason: str) -> None:
    with pytest.raises(TokenizerError, match=re.escape(reason)) as caught:
        tokenizer_of(version).chat(messages)
    assert "\n" not in str(caught.value)


def test_v1_refuses_tools() -> None:
    with pytest.raises(TokenizerError, match="v1 has no place for tools"):
        tokenizer_of("v1").chat([user("?")], tools=[TOOL])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "Hi", "text", "thinking", "call_1", "f"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["type", "text", "thinking", "id", "function", "name", "arguments"]), inner)
    ),
    max_leaves=8,
)
FIELDS = ["content", "tool_calls", "tool_call_id", "name", "reasoning", "reasoning_content"]
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", 3])
anything = st.lists(
    st.builds(lambda role, rest: {"role": role, **rest}, roles, st.dictionaries(st.sampled_from(FIELDS), JSON)),
    max_size=5,
)


@given(st.sampled_from(VERSIONS), anything, st.none() | st.lists(JSON, max_size=2))
def test_whatever_comes_is_encoded_or_refused_in_one_line(version: str, messages: Any, tools: Any) -> None:
    refused = ""
    try:
        assert tokenizer_of(version).chat(messages, tools=tools)
    except TokenizerError as error:
        refused = str(error)
    assert "\n" not in refused


def test_deeply_nested_content_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TokenizerError, match="nested too deeply"):
        tokenizer_of("v3").chat([user({"a": deep})])


def builder(*values: str) -> dict[str, Any]:
    """`model_settings_builder` of a tekken.json whose model knows these efforts."""
    return {"reasoning_effort": {"type": "enum", "accepts_none": True, "values": [*values], "default": values[0]}}


def test_the_effort_of_reasoning_reaches_the_prompt() -> None:
    content = memoryview(tekken_with("v15", LATER["v15"], builder("none", "high")))
    tokenizer = load_tokenizer(TokenizerFile(Path("tekken.json"), content))
    plain, none, high = (tokenizer.chat([user("Hi")], reasoning_effort=effort) for effort in (None, "none", "high"))
    assert plain == none != high
    assert 'reasoning_effort": "high"' in tokenizer.written(high)
    for wrong in ("low", "very", 3):
        with pytest.raises(TokenizerError, match=r"chat template v15: .*reasoning_effort") as caught:
            tokenizer.chat([user("Hi")], reasoning_effort=wrong)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["v1", "v7", "v13", "v15"])
def test_an_effort_that_a_version_does_not_know_is_refused(version: str) -> None:
    with pytest.raises(TokenizerError, match=r"reasoning_effort") as caught:
        tokenizer_of(version).chat([user("Hi")], reasoning_effort="high")
    assert "\n" not in str(caught.value)


def test_efforts_survive_in_gguf(tmp_path: Path) -> None:
    """Files without efforts keep mistral-common; those with them get its template, which says the same."""
    file = tmp_path / "tekken.json"
    for settings in ({}, builder("none", "high")):
        tekken = json.loads(tekken_with("v15", LATER["v15"], settings))
        tekken["vocab"] = tekken["vocab"][:3000]  # the merges of all take seconds
        tekken["config"]["default_vocab_size"] = 3000 + tekken["config"]["default_num_special_tokens"]
        file.write_text(json.dumps(tekken))
        own = load_tokenizer(TokenizerFile(file))
        found = load_tokenizer(gguf_vocabulary(TokenizerFile(file)))
        assert found.kind == ("library" if settings else "tekken")
        system = {"role": "system", "content": "Be brief."}
        for chat in ([user("Hi é🦊")], [system, user("Hi"), assistant("Yo"), user("?")]):
            for effort in (None, "none", "high") if settings else (None,):
                assert found.chat(chat, reasoning_effort=effort) == own.chat(chat, reasoning_effort=effort)
