"""The rules by hand; tests/peers/test_sampling.py holds them against transformers."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mistral_portable.sampling as package
from mistral_portable.sampling import (
    bans,
    dry,
    entropy,
    history,
    logits_processor,
    params,
    pool,
    processors,
    sampler,
    stop,
    token_counts,
)
from mistral_portable.sampling import rows as many

rows = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))


@pytest.mark.parametrize(
    "module",
    [
        package,
        bans,
        dry,
        entropy,
        history,
        logits_processor,
        params,
        pool,
        processors,
        many,
        sampler,
        stop,
        token_counts,
    ],
)
def test_the_worked_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def kept(positions: processors.Positions | None, row: processors.Row) -> list[int]:
    return list(range(row.size)) if positions is None else positions.tolist()


def test_top_p_keeps_the_lowest_ids_of_a_tie() -> None:
    row = np.zeros(8, np.float32)
    assert kept(processors.top_p(row, 0.5), row) == [0, 1, 2, 3]
    assert kept(processors.top_p(row, 0.51), row) == [0, 1, 2, 3, 4]


def test_top_k_and_min_p_keep_all_of_a_tie() -> None:
    row = np.array([1, 0, 1, 1], np.float32)
    assert kept(processors.top_k(row, 1), row) == [0, 2, 3]
    assert kept(processors.min_p(row, 1.0), row) == [0, 2, 3]


@given(row=rows, share=st.floats(1e-9, 1), value=st.floats(1e-300, 100), k=st.integers(1, 50))
def test_a_token_is_always_left_and_the_input_is_untouched(
    row: processors.Row, share: float, value: float, k: int
) -> None:
    before = row.copy()
    best = int(row.argmax())
    cooled = processors.temperature(row, value)
    assert cooled.dtype == np.float32
    assert cooled[best] == cooled.max() > -np.inf
    for positions in (processors.top_k(row, k), processors.top_p(row, share), processors.min_p(row, share)):
        assert row.max() in row[kept(positions, row)]
        assert np.all(np.diff(kept(positions, row)) > 0)
    assert kept(processors.typical_p(row, share), row)
    np.testing.assert_array_equal(row, before)


@given(row=rows, p=st.floats(0.01, 0.99))
def test_top_p_is_the_smallest_set_that_holds_p(row: processors.Row, p: float) -> None:
    probabilities = processors.softmax(row)
    nucleus = kept(processors.top_p(row, p), row)
    mass = probabilities[nucleus].sum()
    assert mass >= p - 1e-12
    assert mass - probabilities[nucleus].min() < p + 1e-12
    assert np.delete(probabilities, nucleus).max(initial=0) <= probabilities[nucleus].min()


def test_masked_tokens_stay_masked() -> None:
    row = np.array([2, -np.inf, 1, 0, -np.inf], np.float32)
    assert kept(processors.finite(row), row) == [0, 2, 3]
    assert kept(processors.finite(processors.temperature(row, 0.5)), row) == [0, 2, 3]
    processors.repetition_penalty(row, np.arange(5), 1.5)
    assert kept(processors.finite(row), row) == [0, 2, 3]


def test_temperature_may_write_over_its_row() -> None:
    row = np.array([1, 3, 2], np.float32)
    assert processors.temperature(row, 0.5, row) is row
    assert row.tolist() == [-4, 0, -2]


@given(row=rows)
def test_softmax_and_its_logarithm_agree(row: processors.Row) -> None:
    np.testing.assert_allclose(np.exp(processors.log_softmax(row)), processors.softmax(row), rtol=1e-12)
    assert processors.softmax(row).sum() == pytest.approx(1, rel=1e-12)


@st.composite
def long_rows(draw: st.DrawFn) -> processors.Row:
    """Rows of thousands of logits, with ties, and with bans if drawn: the shortcuts for large vocabularies apply."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    row = random.standard_normal(draw(st.integers(500, 9000))).astype(np.float32) * np.float32(draw(st.floats(0.01, 8)))
    if draw(st.booleans()):
        row = np.round(row, 1)
    row[random.random(row.size) < draw(st.sampled_from([0, 0.5]))] = -np.inf
    row[draw(st.integers(0, row.size - 1))] = 1
    return row


@given(row=long_rows(), k=st.integers(1, 500))
def test_highest_are_those_of_the_sorted_row(row: processors.Row, k: int) -> None:
    np.testing.assert_array_equal(processors.highest(row, k), np.flatnonzero(row >= np.sort(row)[-k]))


@given(row=long_rows(), value=st.sampled_from([0.01, 0.7, 1, 30]), k=st.integers(0, 80), flat=st.booleans())
def test_temperature_and_top_k_together_are_one_after_the_other(
    row: processors.Row, value: float, k: int, flat: bool
) -> None:
    if flat:  # far below the highest logit, temperature rounds differences away: many more than k may tie
        row *= np.float32(1e-6)
        row[0] = 1000
    tokens, logits = processors.temperature_top_k(row, value, k)
    expected = row if value == 1 else processors.temperature(row, value)
    positions = kept(processors.top_k(expected, k) if k else None, row)
    assert kept(tokens, row) == positions
    np.testing.assert_array_equal(logits, expected[positions])


@given(row=long_rows(), p=st.floats(0.001, 0.999))
def test_top_p_of_a_long_row_is_that_of_all_tokens_sorted(row: processors.Row, p: float) -> None:
    """Bit for bit: the tokens that are tried first have the sums of the whole sorted list."""
    logits = row[row > -np.inf]
    probabilities = processors.softmax(logits)
    order = np.argsort(-logits, kind="stable")
    size = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
    assert kept(processors.top_p(logits, p), logits) == sorted(order[:size].tolist())


@given(row=long_rows(), tokens=st.lists(st.integers(0, 499), min_size=1))
def test_log_softmax_of_some_tokens_is_that_of_all(row: processors.Row, tokens: list[int]) -> None:
    some = processors.log_softmax(row, np.array(tokens))
    np.testing.assert_array_equal(some, processors.log_softmax(row)[tokens])
