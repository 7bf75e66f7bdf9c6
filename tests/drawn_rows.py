"""Tests of rows that a device draws, for each executor that does: its tokens are the sampler's, and where rounding
decides, it leaves the row to the sampler.

A test file imports the tests and has two fixtures: `device_tokens`, and `left`, the share of rows that may be left.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from program_sessions import ProgramSession, text

from mistral_portable.boundary import DrawingProgram, DrawnStep, Draws
from mistral_portable.cache import Chunk
from mistral_portable.engine.draws import draws_of
from mistral_portable.errors import NumericsError
from mistral_portable.sampling import Sampler, SamplingParams

__all__ = [
    "DeviceTokens",
    "Rows",
    "check_steps_that_follow",
    "draws",
    "test_bounds_of_four_equal_tokens",
    "test_each_token_is_the_sampler_s",
    "test_nearly_all_rows_of_a_real_vocabulary_are_drawn_on_the_device",
    "test_rows_that_the_sampler_refuses_are_left_to_it",
    "test_rules_that_cut_nearly_even_shares",
]

Rows = NDArray[np.float32]
DeviceTokens = Callable[[Draws, Rows], list[int]]
"""The ids that the device chooses for rows of logits."""

AnySession = TypeVar("AnySession", bound=ProgramSession[Any])


def check(device_tokens: DeviceTokens, params: Sequence[SamplingParams], logits: Rows) -> int:
    """Compare each row with what its sampler chooses; return how many were left to the samplers."""
    samplers = [Sampler(own) for own in params]
    found = device_tokens(draws_of(samplers, [0] * len(samplers)), logits)
    for token, sampler, row in zip(found, samplers, logits, strict=True):
        assert token in (-1, sampler.sample(row).token)
    return found.count(-1)


TEMPERATURES = st.one_of(st.sampled_from([0.0, 1e-6, 0.7, 1.0, 2.0]), st.floats(0, 2))
SHARES = st.one_of(st.sampled_from([0.25, 0.5, 0.9, 1.0]), st.floats(1e-9, 1))
PARAMS = st.builds(
    SamplingParams,
    temperature=TEMPERATURES,
    top_k=st.one_of(st.just(0), st.integers(0, 70), st.just(2**40)),
    top_p=SHARES,
    min_p=st.one_of(st.just(0.0), SHARES),
    seed=st.integers(0, 2**32),
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[SamplingParams], Rows]:
    """Logits of few values, so with ties, or of many; some are -inf, but not all of a row."""
    params = draw(st.lists(PARAMS, min_size=1, max_size=20))
    size, seed = draw(st.integers(1, 60)), draw(st.integers(0, 2**32))
    numbers = np.random.default_rng(seed)
    logits = (numbers.standard_normal((len(params), size)) * draw(st.sampled_from([0.1, 3, 40, 1e20]))).astype(
        np.float32
    )
    if draw(st.booleans()):
        logits = np.round(logits)
    hidden = numbers.random(logits.shape) < draw(st.sampled_from([0, 0.3, 0.9]))
    hidden[:, numbers.integers(size)] = False
    logits[hidden] = -np.inf
    return params, logits


@settings(deadline=None)
@given(drawn=rows())
def test_each_token_is_the_sampler_s(drawn: tuple[list[SamplingParams], Rows], device_tokens: DeviceTokens) -> None:
    check(device_tokens, *drawn)


def test_rules_that_cut_nearly_even_shares(device_tokens: DeviceTokens, left: float) -> None:
    """Each rule decides in many rows, as no token has nearly all of the probability."""
    numbers = np.random.default_rng(0)
    params = [
        SamplingParams(
            seed=seed,
            temperature=float(numbers.uniform(0.2, 2)),
            top_k=int(numbers.integers(1, 12)),
            top_p=float(numbers.uniform(0.2, 1)),
            min_p=float(numbers.uniform(0, 0.7)),
        )
        for seed in range(1500)
    ]
    assert check(device_tokens, params, numbers.standard_normal((1500, 12), np.float32)) <= 150 * left  # few bounds


@pytest.mark.parametrize(
    "rules", [{}, {"temperature": 1.0}, {"top_k": 50}, {"top_p": 0.9}, {"top_k": 40, "top_p": 0.95, "min_p": 0.05}]
)
def test_nearly_all_rows_of_a_real_vocabulary_are_drawn_on_the_device(
    rules: dict[str, Any], device_tokens: DeviceTokens, left: float
) -> None:
    logits = np.random.default_rng(0).standard_normal((40, 32_768), np.float32) * 3
    params = [SamplingParams(seed=seed, **rules) for seed in range(40)]
    assert check(device_tokens, params, logits) <= 40 * left


def draws(number: float, **rules: float) -> Draws:
    """Those of one row."""
    made = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | rules
    types = {"top_k": np.int32}
    return Draws(np.array([number]), *(np.array([value], types.get(name)) for name, value in made.items()))


@pytest.mark.parametrize(
    ("number", "rules", "token"),
    [
        (0.2, {}, 0),
        (0.25, {}, -1),  # on the bound between the first two
        (0.2501, {}, 1),
        (0.25 + 1e-16, {}, -1),
        (0.99, {}, 3),
        (0.99, {"top_p": 0.4}, 1),  # the first two are left
        (0.99, {"top_p": 0.5}, -1),  # as the second one reaches half of it, or the third one
        (0.99, {"top_k": 1}, 3),  # all tie with the first
        (0.99, {"temperature": 0.0}, 0),
        (0.99, {"min_p": 1.0}, 3),
    ],
)
def test_bounds_of_four_equal_tokens(
    number: float, rules: dict[str, float], token: int, device_tokens: DeviceTokens
) -> None:
    assert device_tokens(draws(number, **rules), np.zeros((1, 4), np.float32)) == [token]


@pytest.mark.parametrize("bad", [[1, np.nan, 0], [np.inf, 0, 1], [-np.inf] * 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_rows_that_the_sampler_refuses_are_left_to_it(
    bad: list[float], temperature: float, device_tokens: DeviceTokens
) -> None:
    logits = np.array([[1, 2, 3], bad, [3, 2, 1]], np.float32)
    samplers = [Sampler(SamplingParams(temperature=temperature, top_k=1, seed=0)) for _ in range(3)]
    assert device_tokens(draws_of(samplers, [0] * 3), logits) == [2, -1, 0]
    with pytest.raises(NumericsError):
        samplers[1].sample(logits[1])


def check_steps_that_follow(session: AnySession, plain: AnySession) -> None:
    """8 steps of three sequences take the tokens that the steps before them have drawn. None is read before the last
    one has begun; logits stay those of their step. plain: steps one by one."""
    program = session.program
    assert isinstance(program, DrawingProgram)
    samplers = [Sampler(SamplingParams(seed=seed, top_p=0.95 if seed else 1.0)) for seed in range(3)]
    lanes = [session.begin(text(5, seed))[0] for seed in range(3)]
    for seed in range(3):
        plain.begin(text(5, seed))
    steps: list[DrawnStep] = []
    for number in range(8):
        known = number == 0
        chunks = [Chunk(lane, [lane], [0], source=None if known else lane) for lane in lanes]
        plan = session.manager.plan(chunks)
        steps.append(program.draw(plan, draws_of(samplers, [number] * 3), after=None if known else steps[-1]))
    tokens = [*lanes]
    for step in steps:
        found = step.tokens().tolist()
        chunks = [Chunk(lane, [token], [0]) for lane, token in enumerate(tokens)]
        rows = plain.program.step(plain.manager.plan(chunks))["logits"]
        for row, logits in enumerate(rows):
            # The tolerance: sums of other shapes are added up in another order, in float32.
            np.testing.assert_allclose(step.logits(row), logits, rtol=1e-4, atol=1e-5)
        tokens = [sampler.sample(step.logits(row)).token for row, sampler in enumerate(samplers)]
        assert found == tokens
