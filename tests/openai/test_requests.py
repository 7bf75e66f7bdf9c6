"""Bodies of OpenAI's API: what is understood, and what is refused with the name of the field."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.api import check_body
from mistral_portable.errors import InputError
from mistral_portable.openai import ChatRequest, TextRequest, parse_request
from mistral_portable.openai.fim import FimRequest
from mistral_portable.sampling import SamplingParams

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hello"}]


def use(url: str, body: Any) -> None:
    """Ask for all that a request holds."""
    request = parse_request(url, body)
    request.sampling()
    request.prompts(lambda messages, *, tools, reasoning_effort: [])


def test_a_chat() -> None:
    body = {
        "model": "any",
        "messages": MESSAGES,
        "max_completion_tokens": 7,
        "temperature": 0,
        "stop": "end",
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {"12": -100},
        "metadata": {"unknown": "fields are ignored"},
        "repeat_penalty": 1.5,
    }
    request = parse_request(CHAT, body)
    assert isinstance(request, ChatRequest)
    params = request.sampling()
    assert (params.max_tokens, params.temperature, params.stop, params.logprobs) == (7, 0, ("end",), 3)
    assert (dict(params.logit_bias), params.repetition_penalty) == ({12: -100}, 1.5)


@pytest.mark.parametrize(("url", "body"), [(CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "a"})])
def test_fields_of_llama_server(url: str, body: dict[str, Any]) -> None:
    asked: dict[str, Any] = {
        "repeat_last_n": 64,
        "top_n_sigma": 1,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "dry_multiplier": 0.8,
        "dry_base": 2,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 99,
        "dry_sequence_breakers": ["a"],
        "dynatemp_range": 0.5,
        "dynatemp_exponent": 2,
        "mirostat": 2,
        "mirostat_tau": 4,
        "mirostat_eta": 0.2,
        "samplers": ["top_k", "typ_p", "temperature"],
        "min_tokens": 3,
    }
    params = parse_request(url, body | asked).sampling()
    expected = asked | {"dry_sequence_breakers": ("a",), "samplers": ("top_k", "typical_p", "temperature")}
    assert {name: getattr(params, name) for name in asked} == expected
    for name in asked:
        with pytest.raises(InputError, match=name):
            parse_request(url, {**body, name: [-7]}).sampling()


_VALUES = {
    "temperature": st.floats(0, 2),
    "top_k": st.integers(0, 9),
    "top_p": st.floats(0.1, 1),
    "min_p": st.floats(0, 1),
    "typical_p": st.floats(0.1, 1),
    "repetition_penalty": st.floats(0.5, 2),
    "max_tokens": st.integers(1, 9),
}
_DEFAULTS = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "repetition_penalty": 1}
some_values = st.fixed_dictionaries({}, optional=_VALUES)


@pytest.mark.parametrize(
    ("url", "asked", "most"), [(CHAT, {"messages": MESSAGES}, None), (TEXT, {"prompt": "a"}, 16)], ids=["chat", "text"]
)
@given(given_values=some_values, stated=some_values, left_open=st.sets(st.sampled_from(sorted(_VALUES))))
def test_what_is_given_comes_before_what_is_stated(
    url: str, asked: Any, most: int | None, given_values: Any, stated: Any, left_open: set[str]
) -> None:
    body = {**dict.fromkeys(left_open), **given_values, **asked}  # null is as good as nothing
    params = parse_request(url, body).sampling(stated)
    expected = {**_DEFAULTS, "max_tokens": most, **stated, **given_values}
    assert {name: getattr(params, name) for name in expected} == expected


def test_a_prediction_and_how_much_is_tried() -> None:
    parts = [{"type": "text", "text": "Once "}, {"type": "text", "text": "more"}]
    for content, text in (("Once", "Once"), (parts, "Once more")):
        body = {"messages": MESSAGES, "prediction": {"type": "content", "content": content}, "speculative.n_max": 4}
        options = parse_request(CHAT, body).options()
        assert (options["prediction"], options["draft"]) == (text, 4)
    assert not parse_request(CHAT, {"messages": MESSAGES, "prediction": None}).options().keys() & {
        "prediction",
        "draft",
    }
    for wrong in ({"prediction": "Once"}, {"prediction": {"type": "image", "content": ""}}, {"speculative.n_max": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            parse_request(CHAT, {"messages": MESSAGES, **wrong})


def test_a_gap_is_filled_as_stated() -> None:
    stated: dict[str, Any] = {"temperature": 0.2, "top_k": 3, "max_tokens": 5}
    own = check_body(FimRequest, {"prompt": "a"})
    assert (own.sampling().temperature, own.sampling().max_tokens) == (0.7, None)
    assert own.sampling(stated) == SamplingParams(**stated)
    given_fields = check_body(FimRequest, {"prompt": "a", "temperature": 0.5, "max_tokens": 9})
    assert given_fields.sampling(stated) == SamplingParams(temperature=0.5, top_k=3, max_tokens=9)


@pytest.mark.parametrize(
    ("prompt", "count"), [("a", 1), ([1, 2], 1), (["a", "b"], 2), ([[1], [2, 3], [4]], 3)], ids=str
)
def test_texts(prompt: Any, count: int) -> None:
    request = parse_request(TEXT, {"prompt": prompt})
    assert isinstance(request, TextRequest)
    assert request.sampling().max_tokens == 16  # OpenAI's default
    assert len(request.prompts(lambda messages, *, tools, reasoning_effort: [])) == count


@pytest.mark.parametrize(
    ("url", "body", "words"),
    [
        (CHAT, {}, "messages: Field required"),
        (CHAT, {"messages": []}, "messages: "),
        (CHAT, {"messages": "Hello"}, "messages: .*'Hello'"),
        (CHAT, {"messages": [5]}, "messages.0: "),
        (CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature: .*'hot'"),
        (CHAT, {"messages": MESSAGES, "temperature": -1}, "temperature"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 0}, "max_tokens: "),
        (CHAT, {"messages": MESSAGES, "n": 10**6}, "n: "),
        (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs: needs logprobs"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"a": 1}}, "logit_bias: "),
        (CHAT, {"messages": MESSAGES, "stop": [""]}, "stop"),
        (TEXT, {"prompt": []}, "prompt: it is empty"),
        (TEXT, {"prompt": ""}, "prompt: it is empty"),
        (TEXT, {"prompt": "a", "echo": True}, "echo: "),
        (TEXT, {"prompt": "a", "suffix": "b"}, "suffix: "),
        (TEXT, {"prompt": "a", "n": 2, "best_of": 3}, "best_of=3: all 2 answers"),
        (TEXT, [], "body: "),
        (TEXT, {"prompt": [[1], ["a"]]}, r"prompt\.1\.0: .*'a'"),
        (CHAT, {"messages": MESSAGES, "stop": ["a", 5]}, r"stop\.1: .*got 5"),
        (CHAT, {"messages": MESSAGES, "response_format": {"type": "a" * 10**5}}, r"^response_format\.type: .{,400}$"),
        ("/v1/embeddings", {}, "'/v1/embeddings': choose one of"),
    ],
    ids=str,
)
def test_what_is_refused(url: str, body: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        use(url, body)
    assert "\n" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = st.sampled_from([*ChatRequest.model_fields, *TextRequest.model_fields])


@given(st.sampled_from([CHAT, TEXT]), st.dictionaries(_FIELDS, _JSON, max_size=5) | _JSON)
def test_any_body_is_taken_or_refused(url: str, body: Any) -> None:
    with contextlib.suppress(InputError):  # any other exception is a defect
        use(url, body)
