"""The rule of `run`'s answer: what --json-schema, --grammar and --regex name."""

from typing import Annotated

import typer

from mistral_portable.cli import stdin
from mistral_portable.cli.sampling_options import sampling_option
from mistral_portable.cli.text import read_file, text
from mistral_portable.engine import Model
from mistral_portable.errors import InputError
from mistral_portable.grammar.texts import MOST_BYTES
from mistral_portable.sampling import Grammar

__all__ = ["GrammarOption", "JsonSchemaOption", "RegexOption", "Rule"]

JsonSchemaOption = Annotated[
    str | None,
    sampling_option("The answer is JSON that keeps the schema in this file; '-': in standard input.", "FILE"),
]
GrammarOption = Annotated[str | None, sampling_option("The answer keeps the Lark grammar in this file.", "FILE")]
RegexOption = Annotated[
    str | None, sampling_option("The whole answer matches this regular expression.", "TEXT", parser=text)
]


class Rule:
    """At most one of the three options; its file is read before a large model is loaded."""

    def __init__(
        self, json_schema: str | None, grammar: str | None, regex: str | None, *, prompt_is_piped: bool
    ) -> None:
        """json_schema, grammar: paths; "-" as a schema is standard input. Raises InputError for a file that cannot be
        read, typer.BadParameter for two options, and for standard input that is the prompt."""
        given = {"--json-schema": json_schema, "--grammar": grammar, "--regex": regex}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise typer.BadParameter("give one of them", param_hint=" and ".join(f"'{name}'" for name in names))
        if json_schema == "-" and prompt_is_piped:
            raise typer.BadParameter("for - give the prompt as an argument", param_hint="'--json-schema'")
        self._schema = None if json_schema is None else _read(json_schema)
        self._grammar = None if grammar is None else _read(grammar)
        self._regex = regex

    def compile(self, model: Model) -> Grammar | None:
        """Compile the rule for a model; None if no option was given. Raises the errors of `Model.compile_grammar`."""
        if self._schema is self._grammar is self._regex is None:
            return None
        return model.compile_grammar(schema=self._schema, grammar=self._grammar, regex=self._regex)


def _read(path: str) -> str:
    """The text of a file, or of standard input for "-", of which not much more is read than may be compiled."""
    rule = stdin.read_text() if path == "-" else read_file(path, MOST_BYTES + 1)
    if rule is None:
        raise InputError("nothing is piped in: pipe the schema, or name a file")
    if not rule:
        raise InputError(f"{'standard input' if path == '-' else path}: is empty, and holds no rule for the answer")
    return rule
