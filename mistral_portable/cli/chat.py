"""`chat`: hold a conversation, typed, or piped in with one message per line."""

from pathlib import Path

import typer

from mistral_portable.cli import stdin
from mistral_portable.cli.answer import end_answer, show_answer
from mistral_portable.cli.conversation import Conversation
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import load_model
from mistral_portable.cli.model_name import placed
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import (
    CacheRamOption,
    ModelArgument,
    NamedOption,
    ReasoningEffortOption,
    SessionOption,
    TensorParallelOption,
)
from mistral_portable.cli.output import aside, note, one_line
from mistral_portable.cli.prompt import SystemOption
from mistral_portable.cli.sampling_options import SamplingOptions
from mistral_portable.cli.session import resume
from mistral_portable.cli.signals import Signals
from mistral_portable.engine import Model, TextStreamer
from mistral_portable.engine.session import read_messages
from mistral_portable.errors import MistralPortableError
from mistral_portable.sampling import SamplingParams

__all__ = ["chat"]

_HELP = """\
/help       this list
/clear      start a new conversation
/save FILE  write the conversation to a file, as JSON
/load FILE  continue a saved conversation
/exit       leave; so does Ctrl-D
//...       a message that begins with a slash
Ctrl-C      stops an answer; leaves, at the prompt"""


@grouped
def chat(
    *,
    context: typer.Context,
    model: ModelArgument = None,
    name: NamedOption = None,
    system: SystemOption = None,
    options: ModelOptions,
    tensor_parallel: TensorParallelOption = None,
    cache_ram: CacheRamOption = None,
    session: SessionOption = None,
    sampling: SamplingOptions,
    reasoning_effort: ReasoningEffortOption = None,
    debug: DebugOption = False,
) -> None:
    """Chat with a model. /help lists the commands; piped input is one message per line."""
    sampling.params()  # whatever the model, they must be right
    if tensor_parallel is not None:
        raise typer.BadParameter(
            "several processes cannot share a conversation: use 'run'", param_hint="'--tensor-parallel'"
        )
    model = placed(name, model)[0] or "tiny"
    with load_model(model, options, tensor_parallel=tensor_parallel, cache_ram=cache_ram) as loaded:
        params = sampling.params_of(loaded, context)
        conversation = Conversation(loaded.tokenizer, system)
        if resume(loaded, session) and session is not None:
            _go_on(conversation, session)
        aside(f"{loaded.source} on {loaded.backend}; /help lists the commands")
        try:
            _converse(loaded, conversation, params, reasoning_effort, context.obj.signals)
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


def _converse(
    model: Model, conversation: Conversation, params: SamplingParams, effort: str | None, signals: Signals
) -> None:
    """Answer the lines of standard input until it ends."""
    for line in stdin.read_lines():
        if line.strip() == "/exit":
            return
        if line.startswith("/") and not line.startswith("//"):
            _obey(conversation, line)
        elif line.strip():
            message = line[1:] if line.startswith("//") else line
            _answer(model, conversation, params, message, effort, signals)


def _obey(conversation: Conversation, line: str) -> None:
    """Carry out a command. An error is reported, and the chat continues."""
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


def _answer(
    model: Model,
    conversation: Conversation,
    params: SamplingParams,
    message: str,
    effort: str | None,
    signals: Signals,
) -> None:
    """Show the answer to a message and append both to the conversation; an empty answer appends neither."""
    messages = [*conversation.messages, {"role": "user", "content": message}]
    try:
        with model.stream(messages, params, reasoning_effort=effort) as streamer:
            _show(streamer, signals)
            generation = streamer.generation
    except MistralPortableError as error:
        if not stdin.is_terminal():
            raise
        note(f"error: {one_line(str(error))}; /clear starts a new conversation")
        return
    end_answer(generation.text, generation)
    if generation.finish_reason == "length":
        aside(f"(cut off after {len(generation.tokens)} tokens: --max-tokens, or the context is full)")
    if generation.text:
        reasoning = {"reasoning": generation.reasoning} if generation.reasoning else {}
        conversation.messages = [*messages, {"role": "assistant", "content": generation.text, **reasoning}]
    else:
        aside("(no answer; your message is forgotten)")


def _show(streamer: TextStreamer, signals: Signals) -> None:
    """Show the answer as it is generated. On a terminal Ctrl-C ends the answer, not the chat."""
    try:
        show_answer(streamer)
    except KeyboardInterrupt:
        if not stdin.is_terminal():
            raise
        signals.go_on()
