"""Tests of texts that a device draws, for each executor that does: they are the host's. Each step begins before the
last one's tokens are read, also where the device leaves some to the sampler.

A test file imports the tests and has three fixtures: `model`, the embedded one on two lanes in a program that draws;
`leave`, which widens the margin within which the program leaves rows to the sampler to a share of the total; `margin`,
such a share.
"""

from collections.abc import Callable
from typing import Any

import pytest

import mistral_portable as mp
from mistral_portable.boundary import DrawingProgram

__all__ = [
    "Leave",
    "drawn",
    "test_a_step_with_rules_that_a_device_does_not_know_is_the_host_s",
    "test_a_text_is_drawn_by_steps_that_follow_each_other",
    "test_rows_that_are_left_to_the_sampler_change_nothing",
    "test_who_ends_by_a_token_that_was_left_to_the_sampler",
]

Leave = Callable[[float], None]

PROMPTS = [[5 + number, *range(40 * number + 50, 40 * number + 55 + 9 * number)] for number in range(5)]
RULES: list[dict[str, Any]] = [
    {},
    {"top_k": 20},
    {"top_p": 0.9, "temperature": 1.3},
    {"min_p": 0.05},
    {"temperature": 0},
]


class Drawn:
    """The steps that a program draws. followed: whether each was submitted after another one. left: the numbers of
    those of which the sampler has looked at a row."""

    def __init__(self) -> None:
        self.followed = list[bool]()
        self.left = list[int]()

    @property
    def again(self) -> int:
        """Steps that did not count: each followed one of which a row was left."""
        last = len(self.followed) - 1
        return sum(number < last for number in self.left)

    def forget(self) -> None:
        self.followed.clear()
        self.left.clear()


@pytest.fixture
def drawn(model: mp.Model, monkeypatch: pytest.MonkeyPatch) -> Drawn:
    assert isinstance(model.program, DrawingProgram)
    found, draw = Drawn(), model.program.draw

    def watched(*arguments: Any, after: Any = None) -> Any:
        step, number = draw(*arguments, after=after), len(found.followed)
        found.followed.append(after is not None)
        look = step.logits

        def logits(row: int) -> Any:
            found.left.append(number)
            return look(row)

        monkeypatch.setattr(step, "logits", logits)
        return step

    monkeypatch.setattr(model.program, "draw", watched)
    return found


def by_host(model: mp.Model, **options: Any) -> list[tuple[int, ...]]:
    """Log-probabilities are made by the host, and so are tokens then."""
    return [
        model.generate(prompt, max_tokens=40, ignore_eos=True, seed=seed, logprobs=0, **rules, **options).tokens
        for seed, (prompt, rules) in enumerate(zip(PROMPTS, RULES, strict=True))
    ]


def params(count: int = 40) -> list[mp.SamplingParams]:
    return [
        mp.SamplingParams(max_tokens=count, ignore_eos=True, seed=seed, **rules) for seed, rules in enumerate(RULES)
    ]


def test_a_text_is_drawn_by_steps_that_follow_each_other(
    margin: float, model: mp.Model, drawn: Drawn, leave: Leave
) -> None:
    """A token that is left to the sampler takes a step more, as the one that has begun does not count. There may be
    such tokens where the margin is not widened, too: which ones depends on how the device rounds."""
    expected = by_host(model)
    assert not drawn.followed
    left = 0
    for count in (40, 12):
        if count == 12:
            leave(margin)
        for prompt, own, tokens in zip(PROMPTS, params(count), expected, strict=True):
            drawn.forget()
            assert model.generate(prompt, own).tokens == tokens[:count]
            assert drawn.followed == ([False, *[True] * (count - 1 + drawn.again)] if own.temperature else [])
            left += drawn.again
    assert left


def test_rows_that_are_left_to_the_sampler_change_nothing(
    margin: float, model: mp.Model, drawn: Drawn, leave: Leave
) -> None:
    """Five texts on two lanes, across two windows. Who was left to the sampler reads its token again."""
    expected = by_host(model)
    leave(margin)
    model.manager.forget()
    found = model.generate(PROMPTS, params())
    assert [generation.tokens for generation in found] == expected
    assert sum(drawn.followed) > len(drawn.followed) / 2
    assert model.manager.lanes == ()
    for prompt, own, tokens in zip(PROMPTS, params(), expected, strict=True):  # what was kept is right
        assert model.generate(prompt, own).tokens == tokens
    again = [
        model.generate([*prompt, *tokens], max_tokens=5, temperature=0)
        for prompt, tokens in zip(PROMPTS, expected, strict=True)
    ]
    model.manager.forget()
    for prompt, tokens, generation in zip(PROMPTS, expected, again, strict=True):
        assert model.generate([*prompt, *tokens], max_tokens=5, temperature=0).tokens == generation.tokens


def test_a_step_with_rules_that_a_device_does_not_know_is_the_host_s(model: mp.Model, drawn: Drawn) -> None:
    expected = by_host(model)[:2]
    other = mp.SamplingParams(max_tokens=12, ignore_eos=True, seed=9, repetition_penalty=1.2)
    alone = model.generate(PROMPTS[1], other).tokens
    drawn.forget()
    found = model.generate(PROMPTS[:2], [params()[0], other])
    assert [generation.tokens for generation in found] == [expected[0], alone]
    assert len(drawn.followed) - drawn.again == 40 - 12  # those behind the other one's end


def test_who_ends_by_a_token_that_was_left_to_the_sampler(model: mp.Model, leave: Leave) -> None:
    tokens = by_host(model)[0]
    leave(1.0)
    own = mp.SamplingParams(max_tokens=40, ignore_eos=True, seed=0, stop_token_ids=(tokens[7],))
    assert model.generate(PROMPTS[0], own).tokens == tokens[: tokens.index(tokens[7]) + 1]
    assert model.manager.lanes == ()
