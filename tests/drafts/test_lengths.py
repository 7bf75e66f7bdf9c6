"""Drafts are as long as pays, and learn from what was right."""

from itertools import pairwise, product
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.drafts import Acceptance, Offer, StepCosts, best_lengths

chances = st.lists(st.lists(st.floats(0.01, 1), max_size=4), min_size=1, max_size=3)


def worth(lengths: tuple[int, ...], chances: list[list[float]], seconds: list[float]) -> float:
    """Expected tokens of a step per second."""
    made = float(len(chances))
    for length, some in zip(lengths, chances, strict=True):
        right = 1.0
        for chance in some[:length]:
            right *= chance
            made += right
    return made / seconds[len(chances) + sum(lengths)]


@given(chances=chances, data=st.data())
def test_no_other_lengths_make_more_tokens_per_second_or_hardly_more_than_none(
    chances: list[list[float]], data: st.DataObject
) -> None:
    most = len(chances) + sum(map(len, chances))
    seconds = [0.0, *sorted(data.draw(st.lists(st.floats(0.1, 9), min_size=most, max_size=most)))]
    found = best_lengths(chances, seconds)
    assert all(0 <= length <= len(some) for length, some in zip(found, chances, strict=True))
    every = product(*(range(len(some) + 1) for some in chances))
    best = max(worth(lengths, chances, seconds) for lengths in every)
    if any(found):
        assert worth(tuple(found), chances, seconds) >= best * (1 - 1e-9)
    else:
        assert worth(tuple(found), chances, seconds) >= best / 1.1 * (1 - 1e-9)


def test_no_step_is_longer_than_the_times_that_are_known() -> None:
    assert best_lengths([[1.0] * 9, [1.0] * 9], [0.0, 1.0, 1.0, 1.0]) in ([1, 0], [0, 1])
    assert best_lengths([[1.0]] * 4, [0.0, 1.0, 1.0]) == [0, 0, 0, 0]


@given(st.lists(st.tuples(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2))), st.lists(st.integers(0, 9)))))
def test_kinds_are_learned_apart_and_up_to_the_first_token_that_is_wrong(
    offers: list[tuple[list[tuple[int, int]], list[int]]],
) -> None:
    acceptance, noted = Acceptance([0.5, 0.5, 0.5]), dict[int, list[bool]]({0: [], 1: [], 2: []})
    for offered, came in offers:
        Offer([token for token, _ in offered], [kind for _, kind in offered]).judge(came, acceptance)
        for (token, kind), new in zip(offered, came, strict=False):
            noted[kind].append(token == new)
            if token != new:
                break
    for kind, rights in noted.items():
        alone = Acceptance([0.5])
        for right in rights:
            alone.observe(0, right)
        assert acceptance.of(kind) == alone.of(0)


def test_what_is_always_right_or_never_is_soon_known() -> None:
    acceptance = Acceptance([0.5, 0.5])
    for _ in range(50):
        acceptance.observe(0, False)
        acceptance.observe(1, True)
    assert acceptance.of(0) < 0.05
    assert acceptance.of(1) > 0.95


def test_a_time_that_was_long_by_chance_is_forgotten() -> None:
    costs = StepCosts(4)
    for tokens, seconds in [(1, 1.0), (2, 99.0), (1, 1.0), (2, 50.0)]:  # the first one of a size may be a compiler's
        costs.observe(tokens, seconds)
    assert costs.seconds()[1:3] == [1, 50]
    for _ in range(3):
        costs.observe(2, 1.1)
    assert costs.seconds()[2] == 1.1
    costs.observe(3, 9.0)
    costs.observe(3, 9.0)
    assert costs.seconds()[3] == 9
    for _ in range(600):
        costs.observe(1, 1.0)
    assert costs.seconds()[3] < 1.5
    costs.observe(3, 10.0)
    assert costs.seconds()[3] == 10


@pytest.mark.parametrize(("right", "least"), [(0.0, 0.97), (0.3, 1.1), (0.5, 1.4), (0.7, 1.9), (0.9, 2.5)])
def test_what_was_learned_pays_from_a_cold_start(right: float, least: float) -> None:
    """Every step has something to try, of which a share is right; steps take times that were measured (AVX-512)."""
    times = [0, 1, 1.1, 1.12, 1.15, 2.03, 2.06, 2.08, 2.11, 2.99, 3.05, 3.03, 3.06, 3.99, 3.98, 4.02, 4.04]
    kinds = [0] * 4 + [1] * 8 + [2] * 3  # as behind matches of 4, 5, 6 ... tokens
    rates = list[float]()
    for seed in range(5):
        random, costs, acceptance = Random(seed), StepCosts(64), Acceptance([0.6, 0.7, 0.8])
        made, spent = 0, 0.0
        for _ in range(400):
            chances = [acceptance.of(kind) for kind in kinds]
            length = best_lengths([chances], costs.seconds())[0]
            accepted = next((behind for behind in range(15) if random.random() >= right), 15)
            for behind in range(min(accepted, length) + 1):
                acceptance.observe(kinds[behind], behind < accepted)
            costs.observe(1 + length, times[1 + length])
            made, spent = made + 1 + min(accepted, length), spent + times[1 + length]
        rates.append(made / spent)
    assert median(rates) >= least


def test_longer_steps_are_tried_behind_a_full_group_whose_next_token_is_dear() -> None:
    """Eight sequences that repeat themselves; kernels take 16 tokens at a time, as with AMX (in times of one token)."""
    costs = StepCosts(64)
    for tokens, seconds in [(8, 1.59), (16, 2.09), (17, 2.6)] * 2:
        costs.observe(tokens, seconds)
    assert sum(best_lengths([[0.9] * 15] * 8, costs.seconds())) > 16
    for tokens, seconds in [(32, 4.2), (64, 8.4)] * 2:  # tried, they turn out to be dearer
        costs.observe(tokens, seconds)
    assert sum(best_lengths([[0.9] * 15] * 8, costs.seconds())) == 8


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.01, 9)), max_size=40))
def test_longer_steps_never_count_as_shorter(steps: list[tuple[int, float]]) -> None:
    costs = StepCosts(8)
    for tokens, seconds in steps:
        costs.observe(tokens, seconds)
    found = costs.seconds()
    assert len(found) == 9
    assert all(one <= next + 1e-12 for one, next in pairwise(found))
