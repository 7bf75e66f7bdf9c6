"""`chat`: hold a conversation, typed, or piped in with one message per line."""

import os
import sys
from pathlib import Path

import typer

from mistral_portable.cli import stdin
from mistral_portable.cli.conversation import Conversation
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.lines import ReadLine
from mistral_portable.cli.loading import loader
from mistral_portable.cli.model_name import placed
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import (
    CacheRamOption,
    ModelArgument,
    NamedOption,
    ReasoningEffortOption,
    SessionOption,
)
from mistral_portable.cli.output import aside, note, one_line
from mistral_portable.cli.prompt import SystemOption
from mistral_portable.cli.repl import Repl
from mistral_portable.cli.sampling_options import SamplingOptions
from mistral_portable.cli.session import resume
from mistral_portable.engine.session import read_messages
from mistral_portable.errors import InputError

__all__ = ["chat"]


@grouped
def chat(
    *,
    context: typer.Context,
    model: ModelArgument = None,
    name: NamedOption = None,
    system: SystemOption = None,
    options: ModelOptions,
    cache_ram: CacheRamOption = None,
    session: SessionOption = None,
    sampling: SamplingOptions,
    reasoning_effort: ReasoningEffortOption = None,
    debug: DebugOption = False,
) -> None:
    """Chat with a model. /help lists the commands; piped input is one message per line."""
    sampling.params()  # whatever the model, they must be right
    model = placed(name, model)[0] or "tiny"
    with loader(model, options, cache_ram=cache_ram)() as loaded:
        params = sampling.params_of(loaded, context)
        conversation = Conversation(loaded.tokenizer, system)
        if resume(loaded, session) and session is not None:
            _go_on(conversation, session)
        aside(f"{_name_of(model)} on {loaded.backend}; /help lists the commands")
        try:
            Repl(loaded, conversation, params, reasoning_effort, context.obj.signals).run(_reader())
        finally:  # once, as a session may have hundreds of megabytes; also after Ctrl-C
            if session is not None and loaded.loop.last_text.tokens:
                loaded.save_session(session, messages=conversation.messages)


def _go_on(conversation: Conversation, session: str) -> None:
    """Continue the chat of a session, if it has one."""
    beginning, messages = conversation.messages, read_messages(Path(session))
    if messages is not None:
        conversation.replace(messages, session)
        if beginning and messages[:1] != beginning:
            note(f"note: {one_line(session)} has its own instructions; /clear starts a conversation with --system")


def _name_of(model: str) -> str:
    """The name of a model for a greeting: not the whole path."""
    return Path(model).name if os.path.exists(model) else model


def _reader() -> ReadLine:
    """Reads typed lines, or those of a pipe."""
    if not stdin.is_terminal():
        lines = stdin.read_lines()
        return lambda prompt: next(lines, None)
    if not (sys.stdout.isatty() or sys.stderr.isatty()):
        raise InputError("nobody would see a prompt: neither stdout nor stderr is a terminal")
    from mistral_portable.cli.typed import TypedLines

    return TypedLines().read
