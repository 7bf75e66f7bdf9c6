"""Tokens that the device draws are the sampler's, though it computes in float32."""

import mistral_portable_mlx.program as mlx_executor
import mlx.core as mx
import numpy as np
import pytest
from drawn_rows import (
    DeviceTokens,
    Rows,
    check_steps_that_follow,
    test_bounds_of_four_equal_tokens,
    test_each_token_is_the_sampler_s,
    test_nearly_all_rows_of_a_real_vocabulary_are_drawn_on_the_device,
    test_rows_that_the_sampler_refuses_are_left_to_it,
    test_rules_that_cut_nearly_even_shares,
)
from mistral_portable_mlx.choosing import Choice, Drawn, Highest
from mlx_sessions import CONFIG, Session, in_use

from mistral_portable.boundary import DrawingProgram, Draws
from mistral_portable.cache import Chunk
from mistral_portable.engine.draws import draws_of
from mistral_portable.sampling import Sampler, SamplingParams

__all__ = [
    "test_bounds_of_four_equal_tokens",
    "test_each_token_is_the_sampler_s",
    "test_nearly_all_rows_of_a_real_vocabulary_are_drawn_on_the_device",
    "test_rows_that_the_sampler_refuses_are_left_to_it",
    "test_rules_that_cut_nearly_even_shares",
]

EPSILON = 2.0**-23


def tokens(draws: Draws, logits: Rows) -> list[int]:
    drawn = Drawn(draws)
    found: list[int] = np.array(drawn.choose(mx.array(logits), drawn.arrays())).tolist()
    return found


@pytest.fixture(scope="module")
def device_tokens() -> DeviceTokens:
    return tokens


@pytest.fixture
def left() -> float:
    """The widest margin, of random logits whose shares are nearly even, is 6e-6 of the total on both sides of each of
    thousands of bounds."""
    return 0.1


@pytest.mark.parametrize("compiled", [False, True])
def test_exponentials_are_as_near_as_the_margin_takes_for_granted(compiled: bool) -> None:
    """Within 4 epsilons and 0.7 |x| of them, relative, for x whose exponential is no denormal; below that it is no
    larger than one."""
    x = np.concatenate([np.linspace(-87, 0, 1_000_001), -np.geomspace(1e-30, 1, 10_001)]).astype(np.float32)
    compute = mx.compile(lambda x: mx.exp(x) * 1.0) if compiled else mx.exp
    exact = np.exp(x.astype(np.float64))
    off = np.abs(np.array(compute(mx.array(x))).astype(np.float64) - exact) / exact
    assert (off <= (4 + 0.7 * np.abs(x)) * EPSILON).all()
    tiny = np.array(compute(mx.array(np.linspace(-200, -87, 1001).astype(np.float32))))
    assert ((tiny >= 0) & (tiny <= np.exp(-86.9))).all()


def test_quotients_are_as_near_as_the_margin_takes_for_granted() -> None:
    numbers = np.random.default_rng(0)
    x = -numbers.uniform(0, 200, 1_000_000).astype(np.float32)
    divisor = numbers.uniform(0.01, 2, x.size).astype(np.float32)
    exact = x.astype(np.float64) / divisor
    found = np.array(mx.array(x) / mx.array(divisor)).astype(np.float64)
    assert (np.abs(found - exact) <= 2.5 * EPSILON * np.abs(exact)).all()


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, as on a GPU."""
    monkeypatch.setattr(mlx_executor, "MLXProgram", mlx_executor.DrawingMLXProgram)


@pytest.mark.usefixtures("uncompiled", "drawing")
def test_steps_that_follow_each_other_take_the_tokens_that_were_drawn() -> None:
    check_steps_that_follow(Session(), Session())


@pytest.mark.usefixtures("drawing")
def test_compiled_steps_that_draw_are_built_once() -> None:
    session = Session()
    program = session.program
    assert isinstance(program, DrawingProgram)
    lane, sampler = session.manager.open(), Sampler(SamplingParams(seed=0))
    token, built = 1, []
    for _ in range(4):
        step = program.draw(session.manager.plan([Chunk(lane, [token], [0])]), draws_of([sampler], [0]))
        (found,) = step.tokens().tolist()
        token = sampler.sample(step.logits(0)).token
        assert found == token
        built.append(program.traces)
    assert built == [1] * 4


@pytest.mark.parametrize("rows", [1, 16, 40])
@pytest.mark.parametrize("top_p", [None, 1.0, 0.9])
def test_scratch_is_known(rows: int, top_p: float | None) -> None:
    """top_p: None: the highest logits are taken. MLX counts no more, and a third at least: the least of five, as a
    busy machine may free what a kernel read a moment after the next one's memory is taken."""
    ones, vocab_size = np.ones(rows), 4000
    choice: Choice = Highest()
    if top_p is not None:
        choice = Drawn(Draws(ones / 2, ones, np.zeros(rows, np.int32), ones * top_p, ones * 0))
    logits, inputs = mx.random.normal((rows, vocab_size)), dict(choice.arrays())
    mx.eval(logits, inputs)
    peaks = []
    limit = mx.set_memory_limit(0)  # it waits for each kernel, as where memory is short
    try:
        for _ in range(5):
            before = in_use()
            mx.reset_peak_memory()
            mx.eval(choice.choose(logits, inputs))
            peaks.append(mx.get_peak_memory() - before)
    finally:
        mx.set_memory_limit(limit)
    counted = min(peaks)
    assert counted <= choice.scratch_bytes(rows, vocab_size) <= 3 * counted


@pytest.mark.usefixtures("drawing")
def test_the_first_text_builds_no_step_however_its_tokens_are_chosen() -> None:
    session = Session(CONFIG.with_window(None))
    program = session.program
    assert isinstance(program, DrawingProgram)
    program.warm()
    assert program.traces == 4
    for rules in ({}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}):
        plan = session.manager.plan([Chunk(session.manager.open(), [1], [0])])
        sampler = Sampler(SamplingParams(seed=0, **rules))
        assert program.draw(plan, draws_of([sampler], [0])).tokens().shape == (1,)
    session.manager.close(0)
    plan = session.manager.plan([Chunk(session.manager.open(), [1], [0])])
    assert program.submit(plan).tokens().shape == (1,)
    assert program.traces == 4
