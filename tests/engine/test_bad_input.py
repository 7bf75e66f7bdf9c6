"""Bad input: one clear line that names the thing and the value, never a traceback of another kind."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable.errors import BackendError, CheckpointError, InputError, TokenizerError


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ([], "empty"),
        ([1, 1024], "1024"),
        ([1, -1], "-1"),
        ([1, 2.5], "2.5"),
        ([1, True], "True"),
        ([1, None], "None"),
        ([1] * 32769, "32769"),
        (["a", 3], "3"),
        (["a", ""], "empty"),
        ([[[1, 2]]], r"\[1, 2\]"),
        ([[1, 2], [1, -1]], "-1"),
        (None, "None"),
        (7, "7"),
        (b"bytes", "bytes"),
        ("half a pair: \ud800", "surrogate"),
    ],
)
def test_prompts(tiny: mp.Model, prompt: Any, words: str) -> None:
    with pytest.raises(mp.MistralPortableError, match=words) as caught:
        tiny.generate(prompt, max_tokens=1)
    assert "\n" not in str(caught.value)
    assert tiny.manager.lanes == ()


@pytest.mark.parametrize(
    "messages",
    [[{}], [{"role": "user"}], [{"role": "emperor", "content": "x"}], [{"role": "user", "content": 5}], [{"a": 1}, 3]],
)
def test_chats(tiny: mp.Model, messages: Any) -> None:
    with pytest.raises(TokenizerError) as caught:
        tiny.chat(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -3},
        {"typical_p": 2},
        {"repetition_penalty": 0},
        {"max_tokens": 0},
        {"seed": -1},
        {"stop": [""]},
        {"stop_token_ids": [4096]},
        {"logit_bias": {4096: 1.0}},
        {"logprobs": -1},
    ],
)
def test_sampling_values(tiny: mp.Model, sampling: dict[str, Any]) -> None:
    (name,) = sampling
    with pytest.raises(InputError, match=name) as caught:
        tiny.generate("Once", **sampling)
    assert "\n" not in str(caught.value)


def test_an_unknown_sampling_option_is_named(tiny: mp.Model) -> None:
    with pytest.raises(InputError, match="temprature"):
        tiny.generate("Once", temprature=1)


@pytest.mark.parametrize("option", [{"priority": 1.5}, {"priority": "high"}, {"user": 3}, {"user": None}])
def test_request_options(tiny: mp.Model, option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(InputError, match=f"{name}={value!r}"):
        tiny.generate("Once", **option)


def test_parameters_for_each_prompt(tiny: mp.Model) -> None:
    with pytest.raises(InputError, match="1 SamplingParams for 2 prompts"):
        tiny.generate(["Once", "A"], [mp.SamplingParams()])
    with pytest.raises(InputError, match="params='hot'"):
        tiny.generate("Once", "hot")  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [0, -1, 10**6, 1.5, "a"])
def test_chunks(tiny: mp.Model, chunk: Any) -> None:
    with pytest.raises(InputError, match=f"chunk={chunk!r}"):
        tiny.logits([1, 2], chunk=chunk)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"model": "no/such/folder/at/all"}, CheckpointError, "no/such/folder/at/all"),
        ({"backend": "abacus"}, BackendError, "abacus"),
        ({"dtype": "float8"}, BackendError, "float8"),
        ({"window": 0}, mp.MistralPortableError, "sliding_window=0"),
        ({"window": "big"}, mp.MistralPortableError, "big"),
        ({"max_context": 0}, InputError, "max_context=0"),
        ({"max_context": 10**9}, InputError, "max_context=1000000000"),
        ({"threads": 0}, InputError, "threads=0"),
        ({"threads": "a"}, InputError, "threads='a'"),
        ({"max_context": 10.5}, InputError, "max_context=10.5"),
        ({"max_lanes": 0}, InputError, "max_lanes=0"),
        ({"model": None}, InputError, "model=None"),
    ],
)
def test_loading(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        mp.load(**{"backend": "reference", **arguments})
    assert "\n" not in str(caught.value)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), st.lists, max_leaves=5)
)
@settings(max_examples=100)
def test_any_object_as_a_prompt_is_refused_or_generates(tiny: mp.Model, prompt: Any) -> None:
    with contextlib.suppress(mp.MistralPortableError):  # any other exception is a defect
        found = tiny.generate(prompt, max_tokens=1)
        for generation in found if isinstance(found, list) else [found]:
            assert len(generation.tokens) == 1
