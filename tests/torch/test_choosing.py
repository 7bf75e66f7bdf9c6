"""Tokens that the device draws are the sampler's; where rounding decides, it leaves the row to the sampler."""

from typing import Any

import numpy as np
import pytest
import torch
from drawn_rows import (
    DeviceTokens,
    Rows,
    check_steps_that_follow,
    draws,
    test_bounds_of_four_equal_tokens,
    test_each_token_is_the_sampler_s,
    test_nearly_all_rows_of_a_real_vocabulary_are_drawn_on_the_device,
    test_rows_that_the_sampler_refuses_are_left_to_it,
    test_rules_that_cut_nearly_even_shares,
)
from mistral_portable_torch.choosing import Drawn
from torch_memory import Held
from torch_sessions import PagedBackend, Repeated, Session

from mistral_portable.boundary import Draws
from mistral_portable.engine.draws import draws_of
from mistral_portable.sampling import Sampler, SamplingParams

__all__ = [
    "test_bounds_of_four_equal_tokens",
    "test_each_token_is_the_sampler_s",
    "test_nearly_all_rows_of_a_real_vocabulary_are_drawn_on_the_device",
    "test_rows_that_the_sampler_refuses_are_left_to_it",
    "test_rules_that_cut_nearly_even_shares",
]


def tokens(draws: Draws, logits: Rows, padded: int = 0) -> list[int]:
    drawn, rows = Drawn(draws), len(logits) + padded
    inputs = {name: torch.from_numpy(array) for name, array in drawn.arrays(rows).items()}
    repeated = torch.from_numpy(logits[np.minimum(np.arange(rows), len(logits) - 1)])
    found: list[int] = drawn.choose(repeated, inputs).tolist()
    return found


@pytest.fixture(scope="module")
def device_tokens() -> DeviceTokens:
    return tokens


@pytest.fixture
def left() -> float:
    """None: a number lies so near to one of 32768 bounds with a chance of 3e-11."""
    return 0.0


def test_a_number_that_is_near_to_a_bound_decides() -> None:
    assert tokens(draws(0.2500001), np.zeros((1, 4), np.float32)) == [1]


def test_rows_of_a_padded_step_are_drawn_as_the_last_one() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 50), np.float32)
    own = draws_of([Sampler(SamplingParams(seed=seed)) for seed in range(3)], [0] * 3)
    found = tokens(own, logits, padded=30)
    assert found[:3] == tokens(own, logits)
    assert set(found[3:]) == {found[2]}


@pytest.mark.parametrize("rules", [{}, {"top_p": 0.9, "top_k": 30}])
@pytest.mark.parametrize("count", [3, 40])
def test_scratch_is_known(count: int, rules: dict[str, Any]) -> None:
    params = [SamplingParams(seed=0, **rules)] * count
    drawn = Drawn(draws_of([Sampler(own) for own in params], [0] * count))
    inputs = {name: torch.from_numpy(array) for name, array in drawn.arrays(count).items()}
    logits = torch.randn(count, 10_000)
    with Held() as held:
        drawn.choose(logits, inputs)
    assert held.most <= drawn.scratch_bytes(count, 10_000) <= 4 * held.most


@pytest.mark.parametrize("recorded", [False, True])
def test_steps_that_follow_each_other_take_the_tokens_that_were_drawn(recorded: bool) -> None:
    record = Repeated() if recorded else None
    check_steps_that_follow(
        Session(backend=PagedBackend(page=64, record=record)), Session(backend=PagedBackend(page=64))
    )
    if record is not None:
        assert record.replays == 6
