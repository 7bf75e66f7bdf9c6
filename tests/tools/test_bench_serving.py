"""Serving loads of a few tokens, against the embedded model and a stand-in for llama-server; and the page."""

from functools import partial
from pathlib import Path

import pytest
from fake_llama_server import install

from mistral_portable.bench import parse
from tools.bench_engines import Setup
from tools.bench_loads import Mix, callers, chat, intruder, poisson, sharers
from tools.bench_scenarios import Scenario, duration, gaps_of_others, last_turn, latencies, sharing
from tools.bench_serving import HTTP, OURS, PEER, compare, main

TINY = Setup(None, "tiny", "reference", threads=1, lanes=8)
SMALL = {
    "mix": Scenario(partial(poisson, Mix(4, 50.0, (2, 4), (2, 3), (2, 4))), latencies),
    "callers": Scenario(partial(callers, 3, 4), duration, (parse("batch:3", 4), "duration")),
    "turn": Scenario(partial(chat, 6, 2, 3, True), last_turn, (parse("prefill:3@8", 1), "first token")),
    "sharers": Scenario(partial(sharers, 3, 4, 2, 2), sharing),
    "intruder": Scenario(partial(intruder, 2, 4, 20, 2), gaps_of_others),
}


@pytest.fixture
def program(tmp_path: Path) -> str:
    return install(tmp_path)


def test_engines_play_the_same_loads(program: str) -> None:
    rows = {row["name"]: row for row in compare(TINY, program, SMALL, 1)}
    assert {name.partition(":")[0] for name in rows} == set(SMALL)
    alone = {"callers: duration / batch:3", "turn: first token / prefill:3@8"}
    assert alone < set(rows)
    for name, row in rows.items():
        engines = {OURS} if name in alone else {OURS, PEER}
        assert set(row["figures"]) == engines, name
        assert [len(figures) for figures in row["figures"].values()] == [1] * len(engines), name
        # Of the mix's 4 prompts, none may share a beginning.
        least = 0 if "cached share" in name else 1e-9
        assert all(figure >= least for figures in row["figures"].values() for figure in figures), name


def test_each_repetition_has_tokens_of_its_own(program: str) -> None:
    computed = compare(TINY, program, {name: SMALL[name] for name in ("sharers", "turn")}, 3)
    figures = {row["name"]: row["figures"][PEER] for row in computed if "computed" in row["name"]}
    # The stand-in finds every beginning that it has had: the 4 tokens that 3 prompts share, and the other turns.
    expected = {"sharers: prompt tokens computed": 4 + 3 * 2, "turn: prompt tokens computed": 3}
    assert figures == {name: [count] * 3 for name, count in expected.items()}


def test_what_this_library_shares_is_computed_once() -> None:
    long = {"sharers": Scenario(partial(sharers, 3, 64, 2, 2), sharing)}
    row = compare(TINY, None, long, 2)[-1]
    assert row == {
        "name": "sharers: prompt tokens computed",
        "unit": "tokens",
        "figures": {OURS: [64 + 3 * 2] * 2},
    }


def test_the_command_line(program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--backend", "reference", "--threads", "1", "--repeat", "1", "--llama-server", program]
    monkeypatch.setattr("sys.argv", ["bench_serving", "tiny", "callers", *options])
    main()
    page = capsys.readouterr().out
    assert page.startswith("## tiny, serving\n")
    assert "--llama-server llama-server\n" in page
    assert program not in page
    assert "llama-server 1 (fake)." in page
    for name in ("callers: all answers", "callers: duration", "callers: duration / batch:8"):
        assert page.count(f"| {name} |") == 1


def test_this_library_over_http_plays_the_same_loads() -> None:
    loads = {name: SMALL[name] for name in ("callers", "sharers")}
    rows = {row["name"]: row["figures"] for row in compare(TINY, None, loads, 1, http=True)}
    assert set(rows["callers: duration"]) == {OURS, HTTP}
    computed = rows["sharers: prompt tokens computed"]
    assert computed[HTTP] == computed[OURS]


def test_an_unknown_load_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench_serving", "tiny", "callers", "crowd"])
    with pytest.raises(SystemExit):
        main()
    assert "crowd: not any of mix stream callers turn" in capsys.readouterr().err
