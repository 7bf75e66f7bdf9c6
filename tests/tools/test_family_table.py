"""The table of docs/families.md: of the families and formats that there are, and no more than the code does."""

from dataclasses import replace
from pathlib import Path

import pytest

from mistral_portable.testing.families import FAMILIES, shrunk
from tools.family_table import BACKENDS, COLUMNS, outcomes

TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8").splitlines()
    if line.startswith(("| Family |", *(f"| {name} |" for name in FAMILIES))) and line.count("|") == len(COLUMNS) + 2
]


def test_the_table_is_of_these_families_and_formats() -> None:
    assert TABLE[0] == ["Family", *COLUMNS]
    assert [row[0] for row in TABLE[1:]] == list(FAMILIES)


@pytest.mark.parametrize("column", ["gguf q4_0", "awq"])
def test_a_cell_is_what_the_code_does(column: str) -> None:
    """Checks the family with the most features; other families and backends are covered by running the tool."""
    found = outcomes(shrunk(FAMILIES["Mixtral 8x7B"]), column, ("reference", "torch"))
    row = next(row for row in TABLE if row[0] == "Mixtral 8x7B")
    assert (row[1 + COLUMNS.index(column)] == "all") == (set(found.values()) == {""})


def test_what_does_not_work_says_why() -> None:
    config = replace(shrunk(FAMILIES["Ministral 8B"]), sliding_window=(4, 8))
    found = outcomes(config, "gguf")
    assert set(found) == set(BACKENDS)
    assert all("convert it to raw" in reason for reason in found.values())
