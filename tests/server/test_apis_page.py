"""The examples of docs/apis.md work as they stand there."""

import re
from pathlib import Path

import pytest
from serving import CHAT, serving

import mistral_portable as mp

TEXT = (Path(__file__).parents[2] / "docs" / "apis.md").read_text()
ADDRESS = "http://127.0.0.1:8080"


def test_clients(model: mp.Model, capsys: pytest.CaptureFixture[str]) -> None:
    programs = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    with serving(model) as running:
        for program in programs:
            assert ADDRESS in program
            exec(compile(program.replace(ADDRESS, running.url), "docs/apis.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == [model.chat(CHAT, temperature=0).text] * len(programs)
