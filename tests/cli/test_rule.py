"""`run --json-schema`, `--grammar` and `--regex`."""

import json
from pathlib import Path

import pytest
from cli.processes import invoke

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
SEED = ("--seed", "3", "--chat")


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA | {"additionalProperties": False}))
    return path


def test_the_answer_keeps_the_schema_of_a_file_or_of_standard_input(schema: Path) -> None:
    by_file = invoke("run", "A number", "--json-schema", str(schema), *SEED)
    assert by_file.status == 0
    assert json.loads(by_file.out)["n"] <= 99
    assert invoke("run", "A number", "--json-schema", "-", *SEED, stdin=schema.read_bytes()).out == by_file.out


def test_the_answer_keeps_a_grammar_and_a_regex(tmp_path: Path) -> None:
    grammar = tmp_path / "rule.lark"
    grammar.write_text('start: "I am " ("Tom" | "Ann")')
    assert invoke("run", "Who?", "--grammar", str(grammar), *SEED).out in ("I am Tom\n", "I am Ann\n")
    assert invoke("run", "Who?", "--regex", "[0-9]{3}", *SEED).out.strip().isdigit()


def test_what_cannot_be_read_or_kept_is_said_in_one_line(schema: Path, tmp_path: Path) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes(b"\xff")
    empty = tmp_path / "empty"
    empty.touch()
    wrong = {
        ("--grammar", str(tmp_path / "none")): "none: cannot be read: No such file",
        ("--grammar", str(latin)): "latin is not UTF-8 text: byte 0xff at index 0",
        ("--grammar", str(empty)): "empty: is empty",
        ("--json-schema", str(empty)): "empty: is empty",
        ("--json-schema", str(tmp_path)): "cannot be read: Is a directory",
        ("--regex", "("): "regex: ",
        ("--regex", "a", "--ignore-eos"): "--ignore-eos: a grammar",
        ("--regex", "a", "--json-schema", str(schema)): "give one of them",
        ("--json-schema", "-"): "nothing is piped in|standard input: is empty",
    }
    for options, message in wrong.items():
        done = invoke("run", "Who?", *options)
        assert done.status == 2
        assert done.out == ""
        assert len(done.err.splitlines()) == 1
        assert any(part in done.err for part in message.split("|"))


def test_standard_input_cannot_be_prompt_and_schema(schema: Path) -> None:
    done = invoke("run", "--json-schema", "-", stdin=schema.read_bytes())
    assert (done.status, done.out) == (2, "")
    assert "prompt" in done.err
