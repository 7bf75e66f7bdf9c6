"""The documents name tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", ["documented-api.md", "transformers-tests.md"])
def test_the_tests_that_tables_name_exist(document: str) -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    rows = [line.split(" | ") for line in (ROOT / "docs" / document).read_text(encoding="utf-8").splitlines()]
    named = [name for row in rows if len(row) == 3 for name in re.findall(r"`(test_\w+)`", row[2])]
    assert len(named) > 5
    assert [name for name in named if f"def {name}(" not in written] == []
    files = [name for row in rows if len(row) == 3 for name in re.findall(r"`(test_\w+\.py)`", row[2])]
    assert [name for name in files if not (ROOT / "tests" / "documented" / name).exists()] == []
