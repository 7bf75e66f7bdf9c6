"""A caller's own rules in answers that are made together: each counts for its answer alone."""

from collections.abc import Sequence
from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.errors import InputError
from mistral_portable.sampling.processors import Row

TEXT: dict[str, Any] = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def model() -> mp.Model:
    return mp.load("tiny", max_context=64, max_lanes=4)


def test_an_error_ends_the_answer_that_it_is_of_and_no_other(model: mp.Model) -> None:
    expected = model.generate([5, 6, 7], **TEXT)

    def fails(tokens: Sequence[int], logits: Row, /) -> Row:
        if len(tokens) == 6:
            raise LookupError("mine")
        return logits

    good, bad = (model.answer([5, 6, 7], logits_processors=rules, **TEXT) for rules in ((), (fails,)))
    answers = {answer.completion: answer for answer in (good, bad)}
    errors = list[BaseException]()
    for completion in model.loop.run(list(answers)):
        try:
            answers[completion].take()
        except LookupError as error:
            errors.append(error)
    assert [str(error) for error in errors] == ["mine"]
    assert bad.generation.tokens == expected.tokens[:3]
    assert good.generation.tokens == expected.tokens
    assert model.manager.lanes == ()


def test_a_rule_that_asks_its_own_model_is_an_error_and_no_deadlock(model: mp.Model) -> None:
    def asks(tokens: Sequence[int], logits: Row, /) -> Row:
        model.generate([5], max_tokens=1)
        return logits

    with pytest.raises(InputError, match="amid its own step"):
        model.generate([5, 6, 7], logits_processors=(asks,), **TEXT)
    assert len(model.generate([5, 6, 7], **TEXT).tokens) == 12


def test_a_prompt_of_tokens_can_be_forced_to_repeat_itself(model: mp.Model) -> None:
    """Rules see the prompt: this one says what stood three tokens before."""

    def echo(tokens: Sequence[int], logits: Row, /) -> Row:
        logits[tokens[-3]] = logits.max() + 1
        return logits

    assert model.generate([5, 6, 7], logits_processors=(echo,), **TEXT).tokens == (5, 6, 7) * 4
