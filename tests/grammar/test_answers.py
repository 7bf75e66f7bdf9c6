"""Answers of the embedded model under a rule."""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from grammar.schemas import schemas
from grammar.walk import accepts
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mistral_portable as mp
from mistral_portable.errors import InputError

PROMPT = "Once upon a time"
CHAT = [{"role": "user", "content": "Who are you?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "height in centimetres": {"type": "integer", "minimum": 1, "maximum": 250},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "height in centimetres"],
    "additionalProperties": False,
}
LONG = {"const": "a sentence with 7 words and more"}
OPTIONS = st.fixed_dictionaries(
    {"seed": st.integers(0, 1000), "temperature": st.sampled_from([0.0, 0.7, 3.0])},
    optional={
        "top_p": st.just(0.9),
        "top_k": st.just(20),
        "repetition_penalty": st.just(1.3),
        "frequency_penalty": st.just(1.0),
        "logit_bias": st.just({600: 5.0, 601: -5.0}),
    },
)


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with mp.load("tiny", backend="numba", max_lanes=4) as model:
        yield model


@given(drawn=schemas(), options=OPTIONS, prompt=st.sampled_from([PROMPT, CHAT]), most=st.sampled_from([5, 30, 400]))
@settings(max_examples=40)
def test_an_answer_parses_and_is_valid_or_is_the_beginning_of_one_that_is(
    model: mp.Model, drawn: Any, options: dict[str, Any], prompt: Any, most: int
) -> None:
    schema, _ = drawn
    answer = model.generate(prompt, schema=schema, max_tokens=most, **options)
    if answer.finish_reason == "stop":
        jsonschema.Draft202012Validator(schema).validate(json.loads(answer.text))
    else:
        assert (answer.finish_reason, len(answer.tokens)) == ("length", most)
        whole = answer.text.rstrip("\ufffd")  # of a character, one or more bytes may be missing
        assert accepts(model.compile_grammar(schema=schema), whole, whole=False)


@given(OPTIONS, st.sampled_from([r"[0-9]{3}-[a-f]{2,5}", r" ?(yes|no)\.", r"(\w+ ){3}end"]), st.booleans())
def test_an_answer_matches_the_regex(model: mp.Model, options: dict[str, Any], regex: str, chat: bool) -> None:
    answer = model.generate(CHAT if chat else PROMPT, regex=regex, max_tokens=300, **options)
    assert answer.finish_reason == "length" or re.fullmatch(regex, answer.text, re.ASCII)


def test_every_call_takes_a_rule(model: mp.Model) -> None:
    rule: dict[str, Any] = {"grammar": 'start: "I am " ("Tom" | "Ann")', "temperature": 2.0, "seed": 3}
    expected = model.chat(CHAT, **rule).text
    assert expected in ("I am Tom", "I am Ann")
    assert "".join(model.stream(CHAT, **rule)) == expected

    async def ask() -> tuple[str, str]:
        pieces = [piece async for piece in model.astream(CHAT, **rule)]
        return "".join(pieces), (await model.agenerate(CHAT, **rule)).text

    assert asyncio.run(ask()) == (expected, expected)
    compiled = model.compile_grammar(grammar=rule["grammar"])
    params = mp.SamplingParams(temperature=2.0, seed=3, grammar=compiled)
    assert [model.generate(CHAT, params).text for _ in range(2)] == [expected, expected]
    assert model.generate(CHAT, grammar=compiled, temperature=2.0, seed=3).text == expected


@given(st.lists(st.sampled_from([PERSON, LONG, {"type": "object"}, None]), min_size=2, max_size=7), st.integers(0, 99))
@settings(max_examples=10)
def test_an_answer_alone_equals_the_answer_in_a_batch(model: mp.Model, rules: list[Any], seed: int) -> None:
    params = [
        mp.SamplingParams(max_tokens=40, seed=seed, grammar=rule and model.compile_grammar(schema=rule))
        for rule in rules
    ]
    prompts = [PROMPT + " there was" * place for place in range(len(rules))]
    together = model.generate(prompts, params)
    for prompt, own, answer in zip(prompts, params, together, strict=True):
        assert model.generate(prompt, own).tokens == answer.tokens


def test_n_answers_have_their_own_seeds_and_states(model: mp.Model) -> None:
    answers = model.generate(PROMPT, schema=PERSON, n=5, seed=7, temperature=2.0, max_tokens=300)
    alone = [model.generate(PROMPT, schema=PERSON, seed=7 + i, temperature=2.0, max_tokens=300) for i in range(5)]
    assert [answer.text for answer in answers] == [answer.text for answer in alone]
    assert len({answer.text for answer in answers}) > 1


@given(OPTIONS, st.sampled_from([PERSON, LONG]))
@settings(max_examples=20)
def test_log_probabilities_change_nothing_and_are_those_of_the_logits(
    model: mp.Model, options: dict[str, Any], schema: dict[str, Any]
) -> None:
    """With them, forced tokens have a step each: that draws the same tokens is what makes them free."""
    plain = model.generate(PROMPT, schema=schema, max_tokens=60, **options)
    told = model.generate(PROMPT, schema=schema, max_tokens=60, logprobs=1, **options)
    assert (told.text, told.tokens) == (plain.text, plain.tokens)
    prompt = model.tokenizer.encode(PROMPT)
    logits = model.logits([*prompt, *told.tokens])[len(prompt) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert told.logprobs is not None
    for row, sampled in zip(expected, told.logprobs, strict=True):
        assert sampled.logprob == pytest.approx(row[sampled.token], abs=1e-3)
        assert sampled.top_logprobs[0].token == row.argmax()


def counted(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of tokens of each step."""
    sizes: list[int] = []
    step: Callable[..., Any] = model.core.program.step

    def count(plan: Any, inputs: Any) -> Any:
        sizes.append(len(plan.tokens))
        return step(plan, inputs)

    monkeypatch.setattr(model.core.program, "step", count)
    return sizes


def test_forced_tokens_have_no_step_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    with mp.load("tiny", backend="reference") as model:
        sizes = counted(model, monkeypatch)
        grammar = 'start: "a sentence with 7 words and more" /[xy]/ ", and another of them" /[xy]/'
        answer = model.generate([1, 600], grammar=grammar, temperature=1.0, seed=1)
        assert answer.finish_reason == "stop"
        assert sum(sizes) <= 2 + len(answer.tokens)  # nothing is read twice
        assert len(sizes) < len(answer.tokens) / 3
        del sizes[:]
        told = model.generate([1, 601], grammar=grammar, temperature=1.0, seed=1, logprobs=0)
        assert len(sizes) == len(told.tokens)


def test_others_go_on_while_one_reads_its_forced_tokens(model: mp.Model) -> None:
    """A long constant is read in chunks, beside the others' tokens, and stops at `max_tokens`."""
    long = {"const": "a sentence with words and more, " * 60}
    params = [mp.SamplingParams(max_tokens=200, temperature=0, grammar=model.compile_grammar(schema=long))]
    params += [mp.SamplingParams(max_tokens=50, temperature=0, ignore_eos=True)] * 3
    answers = model.generate([PROMPT] * 4, params)
    assert [len(answer.tokens) for answer in answers] == [200, 50, 50, 50]
    assert json.dumps(long["const"]).startswith(answers[0].text)
    whole = model.generate(PROMPT, schema=long, max_tokens=None)
    assert (json.loads(whole.text), whole.finish_reason) == (long["const"], "stop")


def test_a_stop_string_ends_the_text_before_the_rule_does(model: mp.Model) -> None:
    answer = model.generate(PROMPT, schema=LONG, stop="words")
    assert (answer.text, answer.finish_reason) == ('"a sentence with 7 ', "stop")


def test_a_token_that_is_forced_and_banned_is_an_error_of_that_request(model: mp.Model) -> None:
    end = model.tokenizer.eos_id
    for logprobs in (None, 0):
        with pytest.raises(InputError, match="ban fewer"):
            model.generate(PROMPT, schema=LONG, logit_bias={end: -np.inf}, logprobs=logprobs)


def test_a_rule_that_fails_amid_an_answer_ends_that_request_alone(model: mp.Model) -> None:
    bad = model.compile_grammar(grammar='start: e\ne: e e | e e e | "a" | "b" | ')
    options: dict[str, Any] = {"max_tokens": 400, "temperature": 0.0}
    alone = model.generate(PROMPT, ignore_eos=True, **options)
    errors: list[Exception] = []

    def fail() -> None:
        try:
            model.generate(PROMPT, grammar=bad, logit_bias={model.tokenizer.eos_id: -np.inf}, **options)
        except InputError as error:
            errors.append(error)

    thread = threading.Thread(target=fail)
    thread.start()
    assert model.generate(PROMPT, ignore_eos=True, **options).tokens == alone.tokens
    thread.join()
    assert len(errors) == 1
    with model.lane(), model.lane(), model.lane(), model.lane():
        pass  # it has given its lane back


def test_a_grammar_of_another_model_and_bad_combinations_are_refused(model: mp.Model) -> None:
    compiled = model.compile_grammar(regex="a")
    with mp.load("tiny", backend="reference") as other, pytest.raises(InputError, match="another model"):
        other.generate(PROMPT, grammar=compiled)
    wrong: list[dict[str, Any]] = [
        {"schema": {}, "regex": "a"},
        {"grammar": compiled, "regex": "a"},
        {"regex": "a", "ignore_eos": True},
        {"grammar": 3},
        {"grammar": ""},
    ]
    for options in wrong:
        with pytest.raises(InputError):
            model.generate(PROMPT, **options)


class Nothing:
    """A grammar of the caller's own, that fails behind the first token."""

    forced = None

    def begin(self, prompt_tokens: Sequence[int]) -> "Nothing":
        return Nothing()

    def allowed(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(700), [650])

    def accept(self, token: int) -> None:
        raise InputError("no more")

    def copy(self) -> "Nothing":
        return Nothing()


def test_a_grammar_may_be_any_object_with_its_methods(model: mp.Model) -> None:
    with pytest.raises(InputError, match="no more"):
        model.generate(PROMPT, grammar=Nothing())
