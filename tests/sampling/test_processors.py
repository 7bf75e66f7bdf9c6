"""The rules by hand; tests/peers/test_sampling.py holds them against transformers."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mistral_portable.sampling as package
from mistral_portable.sampling import params, processors, sampler, stop

rows = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(lambda row: np.array(row, np.float32))


@pytest.mark.parametrize("module", [package, params, processors, sampler, stop])
def test_the_worked_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def kept(row: processors.Row) -> list[int]:
    tokens: list[int] = np.flatnonzero(row > -np.inf).tolist()
    return tokens


def test_top_p_keeps_the_lowest_ids_of_a_tie() -> None:
    assert kept(processors.top_p(np.zeros(8, np.float32), 0.5)) == [0, 1, 2, 3]
    assert kept(processors.top_p(np.zeros(8, np.float32), 0.51)) == [0, 1, 2, 3, 4]


def test_top_k_and_min_p_keep_all_of_a_tie() -> None:
    row = np.array([1, 0, 1, 1], np.float32)
    assert kept(processors.top_k(row, 1)) == [0, 2, 3]
    assert kept(processors.min_p(row, 1.0)) == [0, 2, 3]


@given(row=rows, share=st.floats(1e-9, 1), value=st.floats(1e-300, 100), k=st.integers(1, 50))
def test_a_token_is_always_left_and_the_input_is_untouched(
    row: processors.Row, share: float, value: float, k: int
) -> None:
    before = row.copy()
    best = int(row.argmax())
    for out in (processors.temperature(row, value), processors.top_k(row, k), processors.top_p(row, share),
                processors.min_p(row, share)):  # fmt: skip
        assert out.dtype == np.float32
        assert out[best] == out.max() > -np.inf
    assert kept(processors.typical_p(row, share))
    np.testing.assert_array_equal(row, before)


@given(row=rows, p=st.floats(0.01, 0.99))
def test_top_p_is_the_smallest_set_that_holds_p(row: processors.Row, p: float) -> None:
    probabilities = processors.softmax(row)
    nucleus = kept(processors.top_p(row, p))
    mass = probabilities[nucleus].sum()
    assert mass >= p - 1e-12
    assert mass - probabilities[nucleus].min() < p + 1e-12
    assert np.delete(probabilities, nucleus).max(initial=0) <= probabilities[nucleus].min()


def test_masked_tokens_stay_masked() -> None:
    row = np.array([2, -np.inf, 1, 0, -np.inf], np.float32)
    for out in (
        processors.temperature(row, 0.5),
        processors.top_k(row, 4),
        processors.top_p(row, 0.999),
        processors.min_p(row, 0.001),
        processors.typical_p(row, 0.999),
        processors.repetition_penalty(row, np.ones(5, np.bool_), 1.5),
    ):
        assert kept(out) == [0, 2, 3]


@given(row=rows)
def test_softmax_and_its_logarithm_agree(row: processors.Row) -> None:
    np.testing.assert_allclose(np.exp(processors.log_softmax(row)), processors.softmax(row), rtol=1e-12)
    assert processors.softmax(row).sum() == pytest.approx(1, rel=1e-12)


@st.composite
def long_rows(draw: st.DrawFn) -> processors.Row:
    """Rows of thousands of logits, with ties, and with bans if drawn: the shortcuts for large vocabularies apply."""
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    row = random.standard_normal(draw(st.integers(500, 5000))).astype(np.float32) * np.float32(draw(st.floats(0.01, 8)))
    if draw(st.booleans()):
        row = np.round(row, 1)
    row[random.random(row.size) < draw(st.sampled_from([0, 0.5]))] = -np.inf
    row[draw(st.integers(0, row.size - 1))] = 1
    return row


@given(row=long_rows(), k=st.integers(1, 500))
def test_kth_highest_is_that_of_the_sorted_row(row: processors.Row, k: int) -> None:
    assert processors.kth_highest(row, k) == np.sort(row)[-k]


@given(row=long_rows(), p=st.floats(0.001, 0.999))
def test_top_p_of_a_long_row_is_that_of_all_tokens_sorted(row: processors.Row, p: float) -> None:
    """Bit for bit: the tokens that are tried first have the sums of the whole sorted list."""
    tokens = np.flatnonzero(row > -np.inf)
    probabilities = processors.softmax(row[tokens])
    order = np.argsort(-row[tokens], kind="stable")
    size = int(np.searchsorted(np.cumsum(probabilities[order]), p)) + 1
    assert kept(processors.top_p(row, p)) == sorted(tokens[order[:size]].tolist())
