"""The prompt of `run`: an argument, a file, a pipe, or several of them together."""

from typing import Annotated

import typer

from mistral_portable.cli import stdin
from mistral_portable.cli.text import read_file, text
from mistral_portable.errors import InputError

__all__ = ["FileOption", "PromptArgument", "PromptOption", "SystemOption", "read_prompt"]

PromptArgument = Annotated[
    str | None,
    typer.Argument(
        help="The text; - stands for standard input. What is piped in comes first, then --file, then this.",
        metavar="PROMPT",
        parser=text,
        show_default=False,
    ),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", "-p", help="The same as PROMPT.", metavar="TEXT", parser=text)
]
FileOption = Annotated[str | None, typer.Option("--file", "-f", help="A file with the prompt.", metavar="FILE")]
SystemOption = Annotated[
    str | None,
    typer.Option(
        "--system", help="Instructions for the whole conversation.", metavar="TEXT", parser=text, show_default=False
    ),
]


def read_prompt(argument: str | None, option: str | None, file: str | None, *, piped: bool) -> str:
    """The pipe's text, the file's and the argument's, in lines one below the other. piped: whether the pipe is for it.

    Raises InputError for what cannot be read and for an empty prompt, typer.BadParameter if there is none.
    """
    if argument is not None and option is not None:
        raise typer.BadParameter(f"{argument!r:.40} beside --prompt: give one of them", param_hint="'PROMPT'")
    word = option if argument is None else argument
    asked = "-" in (word, file)
    if asked and not piped:
        raise typer.BadParameter("- is taken: --json-schema reads standard input", param_hint="'PROMPT'")
    parts = [stdin.read_text(asked=asked) if piped else None]
    parts += [None if file in (None, "-") else read_file(str(file)).removesuffix("\n"), None if word == "-" else word]
    if all(part is None for part in parts):
        raise typer.BadParameter("give a text, or pipe one in", param_hint="'PROMPT'")
    prompt = "\n".join(part for part in parts if part)
    if not prompt:
        raise InputError("the prompt is empty: give some text")
    return prompt
