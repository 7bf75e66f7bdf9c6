"""Tool calls and reasoning in what users get: generations, streams, OpenAI's answers, `run` and `chat`."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answers.drawn import parse
from answers.scripted import QUESTION, TOOL, script, written
from answers.versions import tokenizer_of
from cli.processes import invoke

import mistral_portable as mp
from mistral_portable.answers import CallArguments, CallBegin, CallEnd, CallFailed, Content, Delta, named
from mistral_portable.errors import InputError
from mistral_portable.openai import assistant_message, delta_fields, finish_reason, run_batch
from mistral_portable.tokenizer import is_call_id

CALL = '[{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefgh1"}]'


@pytest.fixture
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="reference") as model:
        yield model


@pytest.fixture
def calls(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to QUESTION is a call."""
    tokens = [*written(model.tokenizer, "[TOOL_CALLS]", CALL), model.tokenizer.eos_id]
    script(monkeypatch, model.tokenizer.chat(QUESTION), tokens)


@pytest.mark.usefixtures("calls")
def test_a_generation_has_the_calls_apart_from_the_text(model: mp.Model) -> None:
    found = model.chat(QUESTION, temperature=0)
    (call,) = found.tool_calls
    assert (call.id, call.name, json.loads(call.arguments)) == ("abcdefgh1", "weather", {"city": "Paris"})
    assert (found.text, found.reasoning, found.call_error, found.finish_reason) == ("", "", "", "stop")
    assert model.generate(QUESTION, temperature=0).tool_calls == (call,)
    ids = model.tokenizer.chat(QUESTION)
    assert model.generate(ids, temperature=0, chat=True).tool_calls == (call,)
    with model.stream(QUESTION, temperature=0) as streamer:
        assert list(streamer) == []
        assert streamer.generation.tool_calls == (call,)


@pytest.mark.usefixtures("calls")
def test_a_text_that_is_no_chat_stays_as_it_is(model: mp.Model) -> None:
    found = model.generate(model.tokenizer.chat(QUESTION), temperature=0)
    assert (found.text, found.tool_calls) == (model.tokenizer.decode(found.tokens), ())
    assert found.text == CALL


@pytest.mark.usefixtures("calls")
def test_a_call_that_is_cut_off_is_text(model: mp.Model) -> None:
    found = model.chat(QUESTION, temperature=0, max_tokens=10)
    assert CALL.startswith(found.text.strip())
    assert (found.tool_calls, found.finish_reason) == ((), "length")
    assert found.call_error == "call 0: the list is cut off"
    assert finish_reason(found) == "length"


@pytest.mark.usefixtures("calls")
def test_deltas_for_threads_and_coroutines(model: mp.Model) -> None:
    async def collect() -> list[Delta]:
        return [delta async for delta in model.astream(QUESTION, temperature=0).deltas()]

    deltas = list(model.stream(QUESTION, temperature=0).deltas())
    assert deltas == asyncio.run(collect())
    begin, arguments, end = deltas
    assert end == CallEnd(0)
    assert begin == CallBegin(0, "abcdefgh1", "weather")
    assert isinstance(arguments, CallArguments)


def test_text_and_deltas_are_of_one_stream(model: mp.Model) -> None:
    expected = model.generate("Once upon a time", temperature=0, max_tokens=8).text
    with model.stream("Once upon a time", temperature=0, max_tokens=8) as streamer:
        first = next(streamer)
        rest = [delta.text for delta in streamer.deltas() if isinstance(delta, Content)]
    assert first + "".join(rest) == expected
    assert model.manager.lanes == ()


@pytest.mark.parametrize("stop", ["name", "Paris", "weather"])
def test_stop_strings_are_found_in_content_alone(model: mp.Model, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    tokens = [*written(model.tokenizer, "the na", "[TOOL_CALLS]", CALL), model.tokenizer.eos_id]
    script(monkeypatch, model.tokenizer.chat(QUESTION), tokens)
    found = model.chat(QUESTION, temperature=0, stop=[stop])
    assert (found.text, len(found.tool_calls)) == ("the na", 1)
    assert model.chat(QUESTION, temperature=0, stop=["e n"]).text == "th"


@pytest.mark.usefixtures("calls")
def test_openai_answers(model: mp.Model, tmp_path: Path) -> None:
    body = {"messages": QUESTION, "temperature": 0}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "in").write_text(json.dumps(line))
    run_batch(model, tmp_path / "in", tmp_path / "out")
    (choice,) = json.loads((tmp_path / "out").read_text())["response"]["body"]["choices"]
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [{"id": "abcdefgh1", "type": "function", "function": function}],
    }


def test_a_batch_may_demand_a_call(model: mp.Model, tmp_path: Path) -> None:
    body: dict[str, Any] = {"messages": QUESTION, "tools": [WEATHER], "tool_choice": "required", "n": 2}
    bad = {**body, "tool_choice": named("f")}
    lines = [
        {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": one}
        for id, one in (("a", {**body, "parallel_tool_calls": False}), ("b", bad))
    ]
    (tmp_path / "in").write_text("\n".join(map(json.dumps, lines)))
    run_batch(model, tmp_path / "in", tmp_path / "out")
    found = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    answers = {line["custom_id"]: line["response"] for line in found}
    calls = [choice["message"]["tool_calls"] for choice in answers["a"]["body"]["choices"]]
    assert [[call["function"]["name"] for call in some] for some in calls] == [["weather"], ["weather"]]
    assert answers["b"]["status_code"] == 400
    assert "'f' is none of the tools" in answers["b"]["body"]["error"]["message"]


def test_openai_deltas_add_up_to_the_message(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("v13")
    answer = ["[THINK]", "Hm", "[/THINK]", "Sure.", "[TOOL_CALLS]", "weather", "[ARGS]", '{"city": "Paris"}']
    fields = [delta_fields(delta) for delta in parse(tokenizer, written(tokenizer, *answer))]
    texts = {name: "".join(field.get(name, "") for field in fields if field) for name in ("content", "reasoning")}
    assert texts == {"content": "Sure.", "reasoning": "Hm"}
    assert all(field["reasoning"] == field["reasoning_content"] for field in fields if field and "reasoning" in field)
    (begin, *pieces) = [field["tool_calls"][0] for field in fields if field and "tool_calls" in field]
    assert (begin["index"], begin["type"], begin["function"]) == (0, "function", {"name": "weather", "arguments": ""})
    assert is_call_id(begin["id"])
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {"city": "Paris"}
    assert delta_fields(CallFailed(None, "no call")) is None


def test_openai_message_with_reasoning_and_text(model: mp.Model) -> None:
    found = mp.Generation("Yo", (1,), "stop", None, model.chat(QUESTION, max_tokens=1).timings, reasoning="Hm")
    message = assistant_message(found)
    assert (message["content"], message["reasoning"], message["reasoning_content"]) == ("Yo", "Hm", "Hm")
    assert "tool_calls" not in message
    assert finish_reason(found) == "stop"


@pytest.mark.usefixtures("calls")
def test_run_and_chat_show_calls() -> None:
    options = ("--backend", "reference", "--temperature", "0")
    report = json.loads(invoke("run", "--chat", "--json", QUESTION[0]["content"], *options).out)
    call = {"id": "abcdefgh1", "name": "weather", "arguments": '{"city": "Paris"}'}
    assert (report["text"], report["tool_calls"], report["reasoning"]) == ("", [call], "")
    shown = invoke("run", "--chat", QUESTION[0]["content"], *options)
    assert shown.out == 'weather({"city": "Paris"})\n'
    talk = invoke("chat", *options, stdin=QUESTION[0]["content"].encode() + b"\n")
    assert talk.out == 'weather({"city": "Paris"})\n'


def test_tool_choice_none_leaves_the_tools_out(model: mp.Model) -> None:
    def prompt_tokens(**options: Any) -> int:
        return model.chat(QUESTION, max_tokens=1, **options).timings.prefill_tokens

    assert prompt_tokens(tools=[TOOL]) > prompt_tokens() == prompt_tokens(tools=[TOOL], tool_choice="none")
    streamer = model.stream(QUESTION, max_tokens=1, tools=[TOOL], tool_choice="none")
    assert streamer.generation.timings.prefill_tokens == prompt_tokens()


PLACE = {"city": {"enum": ["Paris", "Rome"]}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": PLACE, "required": ["city"], "additionalProperties": False},
    },
}


@pytest.mark.parametrize("choice", ["required", "any", named("weather")], ids=str)
def test_a_call_is_demanded(model: mp.Model, choice: Any) -> None:
    options: Any = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False, "seed": 3}
    ids = model.tokenizer.chat(QUESTION, tools=[WEATHER])
    streamer = model.stream(QUESTION, **options)
    deltas = list(streamer.deltas())
    found = [
        model.chat(QUESTION, **options),
        model.generate(QUESTION, **options),
        model.generate(ids, chat=True, **options),
        asyncio.run(model.agenerate(QUESTION, **options)),
        streamer.generation,
        *model.generate([QUESTION, QUESTION], **options),
    ]
    assert [type(delta) for delta in deltas] == [CallBegin, CallArguments, CallEnd]
    for one in found:
        (call,) = one.tool_calls
        assert (call.name, one.text, one.finish_reason) == ("weather", "", "stop")
        assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
        assert one.tokens == found[0].tokens


def test_a_demanded_call_that_is_cut_off_is_text(model: mp.Model) -> None:
    found = model.chat(QUESTION, tools=[WEATHER], tool_choice="required", max_tokens=7)
    assert (found.text, found.tool_calls, found.finish_reason) == ('[{"name', (), "length")
    assert found.call_error == "call 0: the list is cut off"


def test_an_answer_ends_behind_the_call_that_is_the_only_one(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [*written(model.tokenizer, "the", "[TOOL_CALLS]", CALL[:-1] + ", " + CALL[1:]), model.tokenizer.eos_id]
    script(monkeypatch, model.tokenizer.chat(QUESTION), tokens)
    several = model.chat(QUESTION, temperature=0)
    one = model.chat(QUESTION, temperature=0, parallel_tool_calls=False)
    assert (len(several.tool_calls), len(one.tool_calls)) == (2, 1)
    assert (one.tool_calls[0], one.text, one.finish_reason) == (several.tool_calls[0], "the", "stop")
    assert len(one.tokens) < len(several.tokens)
    assert model.manager.lanes == ()


def test_a_prompt_is_encoded_once_for_several_answers(model: mp.Model, tmp_path: Path) -> None:
    encoded = list[str]()
    encode = model.tokenizer.encode

    def noted(text: str, **options: Any) -> list[int]:
        encoded.append(text)
        return encode(text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.tokenizer, "encode", noted)
        answers = model.answers("Once", None, 3, seed=5)
        body = {"prompt": "One day", "n": 3, "max_tokens": 1}
        (tmp_path / "in").write_text(
            json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body})
        )
        run_batch(model, tmp_path / "in", tmp_path / "out")
    assert encoded == ["Once", "One day"]
    assert [answer.completion.sampler.params.seed for answer in answers] == [5, 6, 7]


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        (QUESTION, {"tool_choice": "sometimes"}, "tool_choice='sometimes' must be"),
        ("Once", {"tools": [TOOL]}, "tools need a prompt of messages"),
        ("Once", {"tool_choice": "required"}, "there are none: give tools"),
        (QUESTION, {"tools": [TOOL], "tool_choice": named("f")}, "'f' is none of the tools: weather"),
        (
            QUESTION,
            {"tools": [TOOL], "tool_choice": {"type": "custom"}},
            "must be 'auto', 'none', 'required', 'any' or",
        ),
        (QUESTION, {"tools": [{}], "tool_choice": "any"}, "tools"),
        (QUESTION, {"tools": [TOOL], "tool_choice": "any", "regex": "a"}, "keeps no other rule"),
    ],
)
def test_what_is_refused(model: mp.Model, prompt: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        model.generate(prompt, **options)
