"""docs/sampling.md: its examples run, it has every field, and its defaults are those of the code."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mistral_portable.sampling import SamplingParams

PAGE = (Path(__file__).parents[2] / "docs/sampling.md").read_text(encoding="utf-8")
ELSEWHERE = {"max_tokens", "stop", "stop_token_ids", "ignore_eos", "logprobs", "grammar"}  # they choose no token


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/sampling.md", "exec"), {})
    assert len(capsys.readouterr().out) > 100


def test_every_field_is_there_with_its_default() -> None:
    named = set(re.findall(r"`(\w+)(?:=\w+)?`", PAGE)) | {"seed"}
    assert {field.name for field in fields(SamplingParams)} - ELSEWHERE - named == set()
    told = re.findall(r"`(\w+)` \(([-\d.]+)\)", PAGE)
    assert len(told) > 15
    for name, default in told:
        assert getattr(SamplingParams(), name) == float(default), name
