"""Loads: the same from the same seed, Poisson arrivals, lengths and beginnings in their shares, turns of a chat."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.bench_loads import After, Load, Mix, Request, callers, chat, intruder, poisson, sharers

MIX = Mix(requests=2000, rate=4.0, prompts=(1, 3), answers=(2, 5, 7), beginnings=(3, 10), share=0.3)


def test_a_seed_gives_one_load() -> None:
    few = replace(MIX, requests=20)
    assert poisson(few, 100, seed=1) == poisson(few, 100, seed=1)
    assert poisson(few, 100, seed=1) != poisson(few, 100, seed=2)
    assert poisson(few, 100, seed=(1, 2)) == poisson(few, 100, seed=(1, 2)) != poisson(few, 100, seed=(1, 3))


def test_arrivals_are_those_of_a_poisson_process() -> None:
    arrivals = [request.begins for request in poisson(MIX, 100, seed=0).requests]
    gaps = np.diff([0.0, *(begins for begins in arrivals if isinstance(begins, float))])
    assert len(gaps) == 2000
    assert gaps.min() > 0
    # Gaps are exponential: their mean and their deviation are both 1 / rate, and 1 - 1/e of them are below it.
    assert gaps.mean() == pytest.approx(1 / 4, rel=0.1)
    assert gaps.std() == pytest.approx(1 / 4, rel=0.1)
    assert (gaps < 1 / 4).mean() == pytest.approx(1 - 1 / np.e, abs=0.04)


def test_lengths_and_beginnings_come_in_their_shares() -> None:
    requests = poisson(MIX, 100, seed=0).requests
    begun = [request for request in requests if len(request.prompt) > 3]
    assert {len(request.prompt) for request in begun} == {11, 13}
    assert {len(request.prompt) for request in requests} == {1, 3, 11, 13}
    assert len(begun) / len(requests) == pytest.approx(0.3, abs=0.04)
    beginnings = [request.prompt[:10] for request in begun]
    assert len(set(beginnings)) == 3
    for some in set(beginnings):
        assert beginnings.count(some) / len(begun) == pytest.approx(1 / 3, abs=0.08)
    for length in (2, 5, 7):
        share = np.mean([request.answer == length for request in requests])
        assert share == pytest.approx(1 / 3, abs=0.04)


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(2, 50), st.integers(0, 99))
def test_sharers_share_exactly_their_beginning(count: int, common: int, own: int, vocab: int, seed: int) -> None:
    load = sharers(count, common, own, 4, vocab, seed)
    assert len({request.prompt[:common] for request in load.requests}) == 1
    assert all(len(request.prompt) == common + own for request in load.requests)
    assert all(0 <= token < vocab for request in load.requests for token in request.prompt)
    assert (len(load.requests), load.room) == (count, common + own + 4)


def test_callers_begin_at_once() -> None:
    requests = callers(8, 64, 1000, 0).requests
    assert [(len(request.prompt), request.answer, request.begins) for request in requests] == [(1, 64, 0.0)] * 8


def test_a_chat_goes_on_behind_its_first_turn() -> None:
    first, second = chat(40, 4, 5, False, 100, 0).requests
    assert (len(first.prompt), len(second.prompt)) == (40, 5)
    assert (second.begins, second.continues) == (After(0), 0)
    load = chat(40, 4, 5, True, 100, 0)
    first, other, second = load.requests
    assert (other.begins, second.begins, second.continues) == (After(0), After(1), 0)
    assert len(other.prompt) == 40
    assert other.prompt != first.prompt
    assert load.room == 40 + 4 + 5 + 4


def test_an_intruder_ends_the_load() -> None:
    load = intruder(4, 32, 8000, 3, 100, 0)
    assert load.until == 4
    assert load.requests[4] == Request(load.requests[4].prompt, 3, After(0, 32))
    assert len(load.requests[4].prompt) == 8000
    assert all(request.answer > 8000 for request in load.requests[:4])


def test_room_counts_all_turns() -> None:
    turns = [Request((1,) * 10, 2), Request((1,) * 3, 4, After(0), continues=0)]
    assert Load(tuple(turns)).room == 19
    assert Load((*turns, Request((1,), 1, After(1), continues=1))).room == 21
