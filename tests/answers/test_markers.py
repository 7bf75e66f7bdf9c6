"""Markers are found by their names: where mistral-common has them, whichever ids they have."""

from typing import Any

import pytest
from answers.drawn import parse
from answers.scripted import written
from answers.versions import VERSIONS, tokenizer_of, tokenizer_with

from mistral_portable.answers import call_format, join_deltas
from mistral_portable.tokenizer.common import CommonTokenizer

NAMES = {
    "TOOL_CALLS": "[TOOL_CALLS]",
    "ARGS": "[ARGS]",
    "CALL_ID": "[CALL_ID]",
    "BEGIN_THINK": "[THINK]",
    "END_THINK": "[/THINK]",
    "BEGIN_SYSTEM": "[SYSTEM_PROMPT]",
    "END_INST": "[/INST]",
    "END_TOOL_RESULTS": "[/TOOL_RESULTS]",
}


@pytest.mark.parametrize("version", [version for version in VERSIONS if version != "v1"])
def test_they_are_mistral_common_s(version: str) -> None:
    tokenizer = tokenizer_of(version)
    assert isinstance(tokenizer, CommonTokenizer)
    encoder: Any = tokenizer.mistral.instruct_tokenizer
    found = {name: getattr(encoder, name) for name in NAMES if getattr(encoder, name, None) is not None}
    assert found == {name: tokenizer.control_id(NAMES[name]) for name in found}
    assert ("ARGS" in found) == (version[:3] in ("v11", "v13", "v15"))
    assert ("BEGIN_THINK" in found) == (version in ("v13", "v15"))


@pytest.mark.parametrize("version", ["v11", "v13"])
def test_other_ids_are_found_as_well(version: str) -> None:
    names = ["[/THINK]", "[X]", "[CALL_ID]", "[THINK]", "[ARGS]"]
    tokenizer, usual = tokenizer_with(version, names), tokenizer_of("v13")
    answer = ["[THINK]", "Hm", "[/THINK]", "Yo", "[TOOL_CALLS]", "f", "[ARGS]", '{"a": 1}']
    tokens = written(tokenizer, *answer)
    assert set(tokens) >= {32, 35, 36}
    assert tokens != written(usual, *answer)
    found = join_deltas(parse(tokenizer, tokens))
    assert (found.reasoning, found.text, found.call_error) == ("Hm", "Yo", "")
    assert [(call.name, call.arguments) for call in found.tool_calls] == [("f", '{"a": 1}')]
    assert 36 in call_format(tokenizer).call
