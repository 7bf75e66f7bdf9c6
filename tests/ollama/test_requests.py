"""Bodies of Ollama's API: what they become, and what is refused with the name of the field."""

from typing import Any

import pytest

from mistral_portable.api import check_body
from mistral_portable.errors import InputError
from mistral_portable.ollama.requests import ChatRequest, EmbedRequest, GenerateRequest

HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> Any:
    return check_body(ChatRequest, {"model": "m", "messages": HELLO, **fields}).to_conversation()


def generate(**fields: Any) -> Any:
    return check_body(GenerateRequest, {"model": "m", "prompt": "Once", **fields})


def test_defaults_are_ollama_s() -> None:
    asked = chat()
    params = asked.params
    assert (params.temperature, params.top_k, params.top_p, params.max_tokens, params.seed) == (
        0.8,
        40,
        0.9,
        None,
        None,
    )
    assert (params.repetition_penalty, asked.stream, asked.schema) == (1, True, None)


def test_options() -> None:
    options = {
        "num_predict": 5,
        "temperature": 0,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.25,
        "seed": 7,
        "stop": ["END", ""],
        "repeat_penalty": 1.5,
        "num_ctx": 10**9,
        "num_thread": 8,
    }
    params = chat(options=options, keep_alive="5m", think=True).params
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p) == (5, 0, 3, 0.5)
    assert (params.min_p, params.seed, params.stop, params.repetition_penalty) == (0.25, 7, ("END",), 1.5)
    assert (params.repeat_last_n, params.mirostat) == (64, 0)
    params = chat(options={"mirostat": 2, "mirostat_tau": 4, "mirostat_eta": 0.2, "repeat_last_n": -1}).params
    assert (params.mirostat, params.mirostat_tau, params.mirostat_eta, params.repeat_last_n) == (2, 4, 0.2, -1)
    assert chat(options={"num_predict": -2, "seed": -1, "top_k": -1}).params.max_tokens is None


@pytest.mark.parametrize(
    ("form", "schema"),
    [(None, None), ("", None), ("json", {"type": "object"}), ({"type": "string"}, {"type": "string"})],
)
def test_format(form: Any, schema: Any) -> None:
    assert chat(format=form).schema == schema


def test_results_find_their_calls() -> None:
    def call(name: str, **more: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"n": 1}}, **more}

    messages = [
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "content": "", "tool_calls": [call("wind"), call("rain"), call("sun", id="own")]},
        {"role": "tool", "tool_name": "rain", "content": "wet"},
        {"role": "tool", "content": "calm"},
        {"role": "tool", "tool_call_id": "own", "content": "bright"},
        {"role": "assistant", "content": "Wet", "thinking": "Hmm"},
    ]
    made = chat(messages=messages).messages
    wind, rain, sun = (one["id"] for one in made[1]["tool_calls"])
    assert len({wind, rain, sun}) == 3
    assert made[1]["content"] is None
    assert made[1]["tool_calls"][0]["function"] == {"name": "wind", "arguments": '{"n": 1}'}
    assert [one.get("tool_call_id") for one in made[2:5]] == [rain, wind, "own"]
    assert made[5] == {"role": "assistant", "content": "Wet", "reasoning_content": "Hmm"}


def test_a_text_is_a_chat_unless_it_is_raw() -> None:
    asked = generate(system="Be kind").to_conversation()
    assert asked.messages == [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Once"}]
    assert not generate().is_text
    assert generate(raw=True).is_text
    assert generate(suffix="end").is_text


@pytest.mark.parametrize(
    ("make", "fields", "words"),
    [
        (chat, {"messages": [{"role": "king"}]}, "messages.0.role: .*'king'"),
        (chat, {"messages": [{"role": "user", "content": "x", "images": ["aaaa"]}]}, "messages.0.images: "),
        (chat, {"messages": [{"role": "tool", "content": "wet"}]}, "messages.0: .*no message has called"),
        (chat, {"options": {"num_predict": 0}}, "options.num_predict=0"),
        (chat, {"options": {"temperature": "hot"}}, "options.temperature: .*'hot'"),
        (chat, {"options": {"top_p": 7}}, "top_p=7"),
        (chat, {"logprobs": True}, "logprobs: .*stream"),
        (chat, {"format": "yaml"}, "format"),
        (generate, {"template": "{{ .Prompt }}"}, "template: "),
        (generate, {"context": [1, 2]}, "context: "),
        (generate, {"system": "x", "raw": True}, "system: "),
    ],
)
def test_what_is_refused(make: Any, fields: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make(**fields)
    assert "\n" not in str(caught.value)


def test_embed_takes_one_text_or_several() -> None:
    assert check_body(EmbedRequest, {"model": "m", "input": "a"}).texts == ["a"]
    assert check_body(EmbedRequest, {"model": "m", "input": ["a", "b"]}).texts == ["a", "b"]
    for wrong in ([], [5], None, ["a"] * 5000):
        with pytest.raises(InputError, match="input"):
            check_body(EmbedRequest, {"model": "m", "input": wrong})
