"""OpenAI's API, asked by OpenAI's own client: answers are the model's, streams are their answers in pieces."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, PATIENCE, Running

import mistral_portable as mp
from mistral_portable.drafts import StepCosts

TEXT = "Once upon a time"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=PATIENCE, max_retries=0) as client:
        yield client


def test_a_greedy_chat_is_the_model_s(client: openai.OpenAI, model: mp.Model) -> None:
    answer = client.chat.completions.create(model="any", messages=CHAT, temperature=0)  # type: ignore[arg-type]
    alone = model.chat(CHAT, temperature=0, max_tokens=None)
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role) == (alone.text, "assistant")
    assert choice.finish_reason == alone.finish_reason == "stop"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(alone.tokens)
    assert answer.usage.prompt_tokens == alone.timings.prefill_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_seeded_text_is_the_model_s(client: openai.OpenAI, model: mp.Model) -> None:
    prompts = [TEXT, "One day"]
    answer = client.completions.create(model="any", prompt=prompts, seed=3, n=2, max_tokens=9, temperature=1.3)
    alone = model.generate(prompts, n=2, seed=3, max_tokens=9, temperature=1.3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [one.text for some in alone for one in some]


def test_a_prediction_saves_steps_and_changes_nothing(
    client: openai.OpenAI, model: mp.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepCosts, "seconds", lambda self: [1.0] * 65)  # all steps count as equally long
    alone = model.chat(CHAT, temperature=0, max_tokens=None, draft="off")
    predicted = {"type": "content", "content": alone.text}
    ask = client.chat.completions.create
    # Its types are those of literals, which these are not for mypy.
    answer = ask(model="any", messages=CHAT, temperature=0, prediction=predicted)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == alone.text
    right = answer.usage.completion_tokens_details.accepted_prediction_tokens
    assert 0 < right <= len(alone.tokens)
    off = ask(  # type: ignore[call-overload]
        model="any", messages=CHAT, temperature=0, prediction=predicted, extra_body={"speculative.n_max": 0}
    )
    assert off.choices[0].message.content == alone.text
    assert off.usage.completion_tokens_details is None


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.7, 1.5]),
        "seed": st.integers(0, 99),
        "max_tokens": st.integers(1, 40),
        "n": st.integers(1, 3),
        "stop": st.sampled_from([None, ".", [" the", "ball"], "Tom"]),
    }
)


@settings(max_examples=25)
@given(options=SETTINGS, logprobs=st.booleans())
def test_a_streamed_chat_is_the_whole_one(client: openai.OpenAI, options: dict[str, Any], logprobs: bool) -> None:
    if logprobs:
        options |= {"logprobs": True, "top_logprobs": 2}
    create: Any = client.chat.completions.create
    whole = create(model="any", messages=CHAT, **options)
    chunks = list(create(model="any", messages=CHAT, stream=True, stream_options={"include_usage": True}, **options))
    assert len({chunk.id for chunk in chunks}) == 1
    usage = chunks.pop()
    assert usage.choices == []
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert usage.usage.prompt_tokens == whole.usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks)
    for index in range(options["n"]):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert own[0].delta.role == "assistant"
        assert own[-1].delta.content is None
        assert [choice.finish_reason for choice in own] == [None] * (len(own) - 1) + [
            whole.choices[index].finish_reason
        ]
        assert "".join(choice.delta.content or "" for choice in own) == whole.choices[index].message.content
        if logprobs:
            streamed = [one for choice in own if choice.logprobs for one in choice.logprobs.content]
            assert streamed == whole.choices[index].logprobs.content


@settings(max_examples=15)
@given(options=SETTINGS, logprobs=st.sampled_from([None, 0, 2]))
def test_a_streamed_text_is_the_whole_one(client: openai.OpenAI, options: dict[str, Any], logprobs: int | None) -> None:
    create: Any = client.completions.create
    prompts = [TEXT, "A"]
    whole = create(model="any", prompt=prompts, logprobs=logprobs, **options)
    chunks = list(create(model="any", prompt=prompts, logprobs=logprobs, stream=True, **options))
    for choice in whole.choices:
        own = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.text for one in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        if logprobs is not None:
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                found = [one for part in own if part.logprobs for one in getattr(part.logprobs, name)]
                assert found == getattr(choice.logprobs, name)


@pytest.mark.parametrize("seed", range(5))
def test_the_tokens_of_log_probabilities_add_up_to_the_content(client: openai.OpenAI, seed: int) -> None:
    create: Any = client.chat.completions.create
    answer = create(model="any", messages=CHAT, seed=seed, temperature=1.5, logprobs=True, max_tokens=30)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    pieces = [bytes(one.bytes or ()) for one in choice.logprobs.content]
    assert b"".join(pieces).decode(errors="replace") == choice.message.content
    assert all(one.logprob <= 0 for one in choice.logprobs.content)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rule", ["schema", "object", "regex", "grammar"])
def test_answers_follow_a_rule(client: openai.OpenAI, rule: str, stream: bool) -> None:
    options: dict[str, Any] = {
        "schema": {"response_format": schema_format(PERSON)},
        "object": {"response_format": {"type": "json_object"}},
        "regex": {"extra_body": {"regex": "(red|blue) [0-9]{3}"}},
        "grammar": {"extra_body": {"grammar": 'start: "yes" | "no"'}},
    }[rule]
    create: Any = client.chat.completions.create
    for seed in range(4):
        answer = create(
            model="any", messages=CHAT, seed=seed, temperature=1.0, max_tokens=400, stream=stream, **options
        )
        if stream:
            choices = [choice for chunk in answer for choice in chunk.choices]
            text, reason = "".join(one.delta.content or "" for one in choices), choices[-1].finish_reason
        else:
            text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        if rule in ("schema", "object") and reason == "stop":
            jsonschema.validate(json.loads(text), PERSON if rule == "schema" else {"type": "object"})
        elif rule == "regex":
            assert re.fullmatch("(red|blue) [0-9]{3}", text)
        elif rule == "grammar":
            assert text in ("yes", "no")
        assert rule == "object" or reason == "stop"


def test_prompts_of_all_kinds(client: openai.OpenAI, model: mp.Model) -> None:
    ids = model.tokenizer.encode(TEXT)
    kinds: list[Any] = [TEXT, ids, [TEXT], [ids]]
    answers = [client.completions.create(model="any", prompt=kind, temperature=0) for kind in kinds]
    assert {answer.choices[0].text for answer in answers} == {model.generate(TEXT, temperature=0, max_tokens=16).text}


def test_a_prompt_is_found_again_and_timings_say_so(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "What is a cache? " * 20}], "max_tokens": 4}
    with server.client() as http:
        http.post("/v1/chat/completions", json=body)
        answer = http.post("/v1/chat/completions", json=body).json()
        other = http.post("/v1/chat/completions", json=body | {"cache_salt": "mine"}).json()
    asked = answer["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == asked - 1
    assert (answer["timings"]["cache_n"], answer["timings"]["prompt_n"]) == (asked - 1, 1)
    assert answer["timings"]["predicted_n"] == answer["usage"]["completion_tokens"]
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_timings_and_metrics_say_what_was_drafted(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepCosts, "seconds", lambda self: [1.0] * 65)  # whatever this machine's clock says
    body = {"prompt": "red ball " * 30, "max_tokens": 60, "temperature": 0, "logit_bias": {"2": -100}}

    def counts() -> list[float]:
        names = [f"mistral_portable_{name}_tokens_total" for name in ("drafted", "accepted")]
        lines = [line.split() for line in http.get("/metrics").text.splitlines()]
        return [float(line[1]) for name in names for line in lines if line[0] == name]

    with server.client() as http:
        before = counts()
        answer = http.post("/v1/completions", json=body).json()
        after = counts()
    timings = answer["timings"]
    assert [new - old for old, new in zip(before, after, strict=True)] == [
        timings["draft_n"],
        timings["draft_n_accepted"],
    ]
    assert 0 < timings["draft_n_accepted"] <= timings["draft_n"]
    assert timings["predicted_n"] == answer["usage"]["completion_tokens"]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match=r"'gpt'.*'tiny'"):
        client.models.retrieve("gpt")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"messages": 5}, "messages: .*got 5"),
        ({"messages": [{"role": "king", "content": "x"}]}, "message 0 .*king"),
        ({"temperature": "hot"}, "temperature: .*'hot'"),
        ({"top_p": 7}, "top_p=7"),
        ({"n": 0}, "n: .*got 0"),
        ({"stop": ["a", 5]}, "stop.*1: .*got 5"),
        (
            {"messages": [{"role": "user", "content": "word " * 40000}]},
            r"too long: 1\d{5} tokens > 32768 maximum: shorten it$",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: it is missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "json_schema.schema: "),
        ({"response_format": schema_format({"type": "nothing"})}, "schema: .*nothing"),
        ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "tools: an answer that follows a rule"),
        ({"response_format": {"type": "json_object"}, "extra_body": {"regex": "a"}}, "one rule"),
        ({"response_format": {"type": "xml"}}, "response_format.type: .*'xml'"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"extra_body": {"grammar": "start: ("}}, "grammar: "),
        ({"extra_body": {"regex": "("}}, "regex: "),
    ],
    ids=lambda value: f"{value:.30}" if isinstance(value, str) else ",".join(value),
)
def test_errors_come_before_the_stream(client: openai.OpenAI, wrong: dict[str, Any], words: str, stream: bool) -> None:
    create: Any = client.chat.completions.create
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        create(**{"model": "any", "messages": CHAT, "stream": stream, **wrong})
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "invalid_request_error"
    assert "\n" not in caught.value.body["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_has_openai_s_code(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="any", prompt="word " * 40000, stream=stream)
    assert caught.value.code == "context_length_exceeded"
