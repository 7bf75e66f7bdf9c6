"""`backends`: the table and its JSON say what the registry says."""

import json
from pathlib import Path

import pytest
from cli.processes import invoke

from mistral_portable.boundary.registry import candidates, select


def test_table() -> None:
    result = invoke("backends")
    assert (result.status, result.err) == (0, "")
    heading, *rows = result.out.splitlines()
    assert heading.split()[:3] == ["backend", "usable", "score"]
    assert len(rows) == len(candidates())
    assert [row.split()[0] for row in rows if "(auto)" in row] == [select().name]
    for row, candidate in zip(rows, candidates(), strict=True):
        assert " ".join(candidate.availability.reason.split()) in row


def test_json() -> None:
    rows = json.loads(invoke("backends", "--json").out)
    assert [row["name"] for row in rows] == [candidate.name for candidate in candidates()]
    assert [row["name"] for row in rows if row["auto"]] == [select().name]
    assert all(row["usable"] == (row["score"] > 0) and row["reason"] for row in rows)


def test_a_setting_that_cannot_be_met_is_refused_and_no_other_backend_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MISTRAL_PORTABLE_ISA", "sse")
    (row,) = (row for row in json.loads(invoke("backends", "--json").out) if row["auto"])
    assert (row["name"], row["usable"]) == ("numba", False)
    for command in (
        ("run", "Once", "--model", "tiny"),
        ("chat", "--model", "tiny"),
        ("serve", "tiny"),
        ("bench", "tiny"),
        ("verify", "tiny"),
        ("warmup", "tiny"),
        ("quantize", "tiny", str(tmp_path / "out.gguf"), "--type", "q4_0"),
    ):
        result = invoke(*command)
        assert (result.status, result.out) == (1, "")
        assert result.err == f"error: backend 'numba' cannot run here: {row['reason']}\n"
