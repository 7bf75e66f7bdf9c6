"""Pieces of a batch: all requests in order, none too large, cut where neighbours have least in common."""

from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.scaling.pieces import cut, piece_size

BEGINNINGS = st.lists(st.text("ab", max_size=6), max_size=40).map(sorted)


def common(texts: list[str], place: int) -> int:
    pairs = zip(texts[place - 1], texts[place], strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


@given(BEGINNINGS, st.integers(1, 9))
def test_pieces_are_the_list_in_order(texts: list[str], size: int) -> None:
    pieces = list(cut(texts, size))
    assert [text for begin, end in pieces for text in texts[begin:end]] == texts
    assert all(end - begin <= size for begin, end in pieces)
    assert all(2 * (end - begin) >= size for begin, end in pieces[:-1])


@given(BEGINNINGS, st.integers(1, 9))
def test_each_cut_is_at_the_best_place(texts: list[str], size: int) -> None:
    for begin, end in list(cut(texts, size))[:-1]:
        places = range(begin + (size + 1) // 2, begin + size + 1)
        assert common(texts, end) == min(common(texts, place) for place in places)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(8, 12))
def test_small_groups_stay_together(sizes: list[int], size: int) -> None:
    """Groups that are at most half a piece, with nothing in common between them, are never cut."""
    texts = [f"{chr(65 + group)} prompt" for group, count in enumerate(sizes) for _ in range(count)]
    for _, end in list(cut(texts, size))[:-1]:
        assert texts[end - 1] != texts[end]


@pytest.mark.parametrize("total", [1, 7, 100, 2000, 10**6])
@pytest.mark.parametrize("replicas", [1, 2, 1000])
def test_a_piece_fills_the_lanes(total: int, replicas: int) -> None:
    size = piece_size(total, replicas, lanes=8)
    assert 8 <= size <= 64
    assert size == 8 or total // size >= 8 * replicas
