"""Figures of traces that are written down here."""

import pytest

from mistral_portable.bench import parse
from tools.bench_loads import After, Mix
from tools.bench_play import Trace
from tools.bench_scenarios import duration, gaps_of_others, last_turn, latencies, scenarios, sharing


def test_latencies_have_their_percentiles() -> None:
    # First tokens after 1, 2, .. 101 s; gaps of 10 ms, but for one of 30 ms in each of ten requests.
    traces = []
    for index in range(101):
        begin = 2.0 * index + 1
        gaps = [0.01, 0.03] if index < 10 else [0.01, 0.01]
        traces.append(Trace(10, float(index), [begin, begin + gaps[0], begin + sum(gaps)], cached=index % 2 * 5))
    figures = latencies(traces)
    assert list(figures) == [
        *("first token, p50", "first token, p95", "between tokens, p50", "between tokens, p95"),
        *("all answers", "cached share of prompts"),
    ]
    assert [unit for _, unit in figures.values()] == ["s", "s", "ms", "ms", "tokens/s", "%"]
    # 10 of the 202 gaps are longer: fewer than 5%.
    expected = [51, 96, 10, 10, 303 / 201.02, 100 * 50 * 5 / 1010]
    assert [value for value, _ in figures.values()] == pytest.approx(expected)


def test_the_duration_reaches_from_the_first_request_to_the_last_token() -> None:
    traces = [Trace(1, 0.5, [1.0, 4.5]), Trace(1, 1.0, [2.0, 3.0, 4.0])]
    assert duration(traces) == {"all answers": (5 / 4, "tokens/s"), "duration": (4.0, "s")}


def test_a_turn_is_measured_alone() -> None:
    traces = [Trace(40, 0.0, [9.0], cached=0), Trace(50, 10.0, [10.5, 12.0], cached=44)]
    assert last_turn(traces) == {"first token": (0.5, "s"), "prompt tokens computed": (6, "tokens")}


def test_what_sharers_compute() -> None:
    traces = [Trace(50, 0.0, [1.0], cached=0), Trace(50, 0.5, [3.0], cached=40)]
    assert sharing(traces) == {"slowest first token": (2.5, "s"), "prompt tokens computed": (60, "tokens")}


def test_gaps_belong_before_or_beside_the_last_request() -> None:
    # The last request begins at 3.5 and has its first token at 8: gaps of 1 s before, of 2 s meanwhile, of 9 s after.
    steady = Trace(1, 0.0, [1.0, 2.0, 3.0, 5.0, 7.0, 9.0, 18.0])
    figures = gaps_of_others([steady, steady, Trace(100, 3.5, [8.0, 18.0])])
    assert figures == {
        "between tokens before, p50": (1000, "ms"),
        "between tokens meanwhile, p95": (2000, "ms"),
        "slower meanwhile": (2, "times"),
        "first token of the long prompt": (4.5, "s"),
    }


def test_scenarios_are_of_the_sizes_that_the_page_tells() -> None:
    loads = {name: some.make(vocab=1000, seed=0) for name, some in scenarios(Mix(5, 1.0)).items()}
    assert {name: len(load.requests) for name, load in loads.items()} == {
        "mix": 5,
        "stream": 1,
        "callers": 8,
        "turn": 2,
        "turn-between": 3,
        "sharers": 8,
        "system": 8,
        "intruder": 5,
    }
    turn, between, long = (loads[name].requests for name in ("turn", "turn-between", "intruder"))
    assert [len(request.prompt) for request in turn] == [4000, 30]
    assert [len(request.prompt) for request in between] == [4000, 4000, 30]
    assert len(long[4].prompt) == 8000
    assert long[4].begins == After(0, 32)
    assert sum(len(request.prompt) for request in loads["sharers"].requests) == 16_400
    assert sum(len(request.prompt) for request in loads["system"].requests) == 8_400


def test_a_turn_is_compared_with_its_new_tokens_behind_the_rest() -> None:
    for name in ("turn", "turn-between"):
        first, *_, second = (some := scenarios(Mix(1, 1.0))[name]).make(vocab=9, seed=0).requests
        new, behind = len(second.prompt), len(first.prompt) + first.answer
        assert some.alone == (parse(f"prefill:{new}@{behind}", 1), "first token")
