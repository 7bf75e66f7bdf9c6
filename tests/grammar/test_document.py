"""The examples of docs/structured-output.md run."""

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/structured-output.md"


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    assert len(blocks) == 2
    assert json.loads(shown[0].replace("'", '"')).keys() == {"name", "age"}
    assert shown[1] in ("red", "green", "blue")
    assert shown[2] in ("I am Tom.", "I am Ann.")
    answers = names["answers"]
    assert isinstance(answers, list)
    for answer in answers:
        assert answer.finish_reason == "length" or json.loads(answer.text).keys() == {"name", "age"}
