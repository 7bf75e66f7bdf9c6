"""`bench`: its numbers are numbers, its JSON is JSON, and nonsense is one line."""

import json
from math import isfinite

import pytest
from cli.processes import invoke

from mistral_portable.reference.program import ReferenceProgram

WHAT = ("prefill:8", "decode:0", "decode:9", "batch:2", "decode:99999")
SMALL = ("bench", "tiny", *WHAT, "--backend", "reference", "--tokens", "2", "--repeat", "3")


def test_json() -> None:
    result = invoke(*SMALL, "--json")
    assert (result.status, result.err) == (0, "")
    report = json.loads(result.out)
    assert report["backend"] == "reference"
    assert report["precision"]["dtype"] == "float32"
    assert all(report[name] > 0 for name in ("load_s", "first_token_s", "peak_memory_bytes", "cache_bytes"))
    assert report["scratch_bytes"] >= 0
    *rows, skipped = report["measurements"]
    assert [row["name"] for row in rows] == list(WHAT[:-1])
    assert skipped == {"name": "decode:99999", "skipped": "needs 100006 positions, the context holds 32768"}
    for row, tokens in zip(rows, (8, 2, 2, 4), strict=True):
        rates = row["tokens_per_s"]
        assert len(row["seconds"]) == 3
        assert all(isfinite(value) and value > 0 for value in (*row["seconds"], *rates.values()))
        assert rates["min"] <= rates["median"] <= rates["max"] == tokens / min(row["seconds"])


def test_table() -> None:
    result = invoke(*SMALL)
    assert (result.status, result.err) == (0, "")
    heading, *rows, precision, summary = result.out.splitlines()
    assert heading.split() == ["tokens/s", "least", "most"]
    assert [row.split()[0] for row in rows] == list(WHAT)
    assert all(float(figure) > 0 for row in rows[:-1] for figure in row.split()[1:])
    assert "the context holds 32768" in rows[-1]
    assert precision == "reference: dtype float32"
    assert summary.startswith("loaded in ")
    assert ", cache " in summary


def test_scratch_is_shown_where_the_program_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceProgram, "scratch_bytes", 2048)
    assert ", scratch 2.0 KiB" in invoke("bench", "tiny", "prefill:8", "--backend", "reference", "--repeat", "1").out


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("bench tiny frob:3", 2, "'frob:3' is not prefill:TOKENS[@DEPTH], decode:DEPTH, batch:SEQUENCES"),
        ("bench tiny prefill:0", 2, "'WHAT'"),
        ("bench tiny decode:-1", 2, "'WHAT'"),
        ("bench tiny batch:2 --repeat 0", 2, "'--repeat'"),
        ("bench tiny batch:2 --tokens 0", 2, "'--tokens'"),
        ("bench tiny --threads 0", 2, "'--threads'"),
        ("bench tiny --backend frob", 1, "'frob' is unknown"),
        ("bench /no/such/model", 1, "/no/such/model"),
    ],
)
def test_nonsense_is_one_line(line: str, status: int, words: str) -> None:
    result = invoke(*line.split())
    assert (result.status, result.out) == (status, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert words in result.err
