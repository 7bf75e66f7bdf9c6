"""`chat`: a conversation, typed, or piped in with one message per line."""

from dataclasses import replace
from typing import Annotated

import typer

from mistral_portable.cli import stdin
from mistral_portable.cli.conversation import Conversation
from mistral_portable.cli.loading import load_model
from mistral_portable.cli.options import DebugOption, ModelOptions, SamplingOptions
from mistral_portable.cli.output import aside, end_line, note, one_line, show
from mistral_portable.engine import Model, TextStreamer
from mistral_portable.errors import MistralPortableError
from mistral_portable.sampling import SamplingParams

__all__ = ["chat"]

_HELP = """\
/help       this list
/clear      start a new conversation
/save FILE  write the conversation to a file, as JSON
/load FILE  go on with a saved conversation
/exit       leave; so does Ctrl-D
//...       a message that begins with a slash
Ctrl-C      stops an answer; leaves, at the prompt"""


def chat(
    model: ModelOptions,
    sampling: SamplingOptions,
    name: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="As --model.", show_default=False)] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions for the whole conversation.", show_default=False)
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Talk with a model. /help lists the commands; piped input is one message per line."""
    params = sampling.params()
    if model.tensor_parallel is not None:
        raise typer.BadParameter(
            "several processes cannot share a conversation: use 'run'", param_hint="'--tensor-parallel'"
        )
    if name is not None and model.model not in ("tiny", name):
        raise typer.BadParameter(f"{name!r} beside --model {model.model!r}: give one of them", param_hint="'MODEL'")
    if name is not None:
        model = replace(model, model=name)
    with load_model(model) as loaded:
        conversation = Conversation(loaded.tokenizer, system)
        aside(f"{loaded.source} on {loaded.backend}; /help lists the commands")
        for line in stdin.read_lines():
            if line.strip() == "/exit":
                return
            if line.startswith("/") and not line.startswith("//"):
                _obey(conversation, line)
            elif line.strip():
                message = line[1:] if line.startswith("//") else line
                _answer(loaded, conversation, params, message)


def _obey(conversation: Conversation, line: str) -> None:
    """Carry out a command. What it cannot do it says, and the chat goes on."""
    command, _, file = line.partition(" ")
    file = file.strip()
    try:
        match command, file:
            case "/help", _:
                note(_HELP)
            case "/clear", _:
                conversation.clear()
                note("a new conversation")
            case (("/save" | "/load"), ""):
                note(f"error: {command} needs the name of a file")
            case "/save", _:
                conversation.save(file)
                note(f"saved {len(conversation.messages)} messages to {one_line(file)}")
            case "/load", _:
                conversation.load(file)
                note(f"loaded {len(conversation.messages)} messages from {one_line(file)}")
            case _:
                note(f"error: {one_line(command)} is no command; /help lists them")
    except MistralPortableError as error:
        note(f"error: {one_line(str(error))}")


def _answer(model: Model, conversation: Conversation, params: SamplingParams, message: str) -> None:
    """Show the answer to a message and remember both; without an answer, neither."""
    asked = [*conversation.messages, {"role": "user", "content": message}]
    try:
        with model.stream(asked, params) as streamer:
            _show(streamer)
            generation = streamer.generation
    except MistralPortableError as error:
        if not stdin.is_terminal():
            raise
        note(f"error: {one_line(str(error))}; /clear starts a new conversation")
        return
    end_line(generation.text)
    if generation.finish_reason == "length":
        aside(f"(cut off after {len(generation.tokens)} tokens: --max-tokens, or the context is full)")
    if generation.text:
        conversation.messages = [*asked, {"role": "assistant", "content": generation.text}]
    else:
        aside("(no answer; your message is forgotten)")


def _show(streamer: TextStreamer) -> None:
    """Show the answer as it comes. On a terminal Ctrl-C ends the answer, not the chat."""
    try:
        for piece in streamer:
            show(piece)
    except KeyboardInterrupt:
        if not stdin.is_terminal():
            raise
