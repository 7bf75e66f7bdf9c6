"""The application: its commands, and how errors become a message and an exit status."""

import io
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from mistral_portable import __version__
from mistral_portable.cli.collector import resting
from mistral_portable.cli.debug import DebugOption, Settings
from mistral_portable.cli.hints import command_hint, name_options, option_hint
from mistral_portable.cli.output import one_line
from mistral_portable.cli.signals import Signals
from mistral_portable.errors import BusyError, InputError, MistralPortableError

__all__ = ["run_app"]

# The first row that an error is an instance of gives the exit status; any other error is 1. CapacityError is a
# MemoryError. 75 is EX_TEMPFAIL of <sysexits.h>.
_EXIT_STATUSES: tuple[tuple[type[Exception], int, str], ...] = (
    (InputError, 2, "wrong usage or input"),
    (MemoryError, 3, "does not fit into memory"),
    (BusyError, 75, "busy, try again"),
)
_EPILOG = "Exit status: " + "; ".join(
    [
        "0 done",
        "1 failed",
        *(f"{status} {meaning}" for _, status, meaning in _EXIT_STATUSES),
        "130 interrupted",
        "143 terminated",
    ]
)
_COMMANDS = (
    "run",
    "chat",
    "pull",
    "list",
    "where",
    "rm",
    "backends",
    "inspect",
    "verify",
    "bench",
    "warmup",
    "convert",
    "quantize",
    "perplexity",
    "batch",
    "serve",
)


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """Make the application with the command that the arguments begin with, which alone is imported; where they name
    none, as for --help, with all."""
    app = typer.Typer(
        name="mistral-portable",
        add_completion=False,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
        epilog=_EPILOG,
    )
    app.callback()(_top)
    name = _command_of(arguments)
    if name in _COMMANDS:
        wanted: Sequence[str] = [name]
    else:
        wanted = () if "--version" in arguments else _COMMANDS
    for name in wanted:
        app.command()(getattr(import_module(f"mistral_portable.cli.{name}"), name))
    return app


def _command_of(arguments: Sequence[str]) -> str:
    """The word where a command stands; "": there is none."""
    return next((word for word in arguments if not word.startswith("-")), "")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mistral-portable {__version__}")
        raise typer.Exit


def _top(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Run Mistral models on whatever machine you have."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run_app(arguments: list[str] | None, signals: Signals) -> None:
    """Run the application and leave by SystemExit. An error is one line on stderr, unless --debug is given.

    signals: they are handled, and may raise from here on.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by `>&-`: nobody reads it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what an old code page cannot show
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # what its warnings say, our errors do
    settings = Settings(signals)
    words = sys.argv[1:] if arguments is None else arguments
    with resting():
        app = make_app(words)
    try:
        signals.work()
        # Ctrl-C is typer's 130; a pipe whose reader has gone is its quiet 1.
        status = app(words, obj=settings, standalone_mode=False)
        sys.stdout.flush()  # a full disk shows now, not amid the interpreter's end
    except BrokenPipeError:
        _drop_output()
        status = 1
    except BaseException as error:
        if signals.received:  # whatever the interrupt became on its way: NumPy makes ImportErrors of it
            status = signals.status
        elif settings.debug or not isinstance(error, Exception):
            raise
        else:
            status, message = _explain(error, app, words)
            typer.echo(f"error: {one_line(message)}", err=True)
        _drop_output()
    sys.exit(status)


def _drop_output() -> None:
    """Let the interpreter's end succeed where what is left in stdout's buffer cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: Exception, app: typer.Typer, words: Sequence[str]) -> tuple[int, str]:
    """The exit status and the message for an error of a command line."""
    name = _command_of(words)
    command = getattr(typer.main.get_command(app), "commands", {}).get(name)
    values = {spelling: found.metavar for found in command.params for spelling in found.opts} if command else {}
    if hasattr(error, "format_message"):  # typer's usage errors; their class has no public name
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "mistral-portable"
        return 2, f"{_usage(error, name, words, values)}; see '{path} --help'"
    status = next((status for kind, status, _ in _EXIT_STATUSES if isinstance(error, kind)), 1)
    if isinstance(error, MistralPortableError | OSError | MemoryError):
        return status, name_options(str(error), values) or "out of memory"
    return 1, f"internal: {type(error).__name__}: {error}; run again with --debug for the traceback"


def _usage(error: Any, name: str, words: Sequence[str], values: Mapping[str, str | None]) -> str:
    """The message of typer for a wrong command line, with a hint. values: what the command's options take, by their
    spellings."""
    if name and not values:
        return f"No such command {name!r}{command_hint(name, _COMMANDS)}"
    message = str(error.message if hasattr(error, "possibilities") else error.format_message()).rstrip(".")
    hint = option_hint(words, values)
    if not hint and "requires an argument" in message and (value := values.get(error.option_name)):
        hint = f" ({value})"
    if not hint and name == "run" and "extra argument" in message:
        hint = " (quote the prompt; --model names the model)"
    return message + hint if hint else str(error.format_message()).rstrip(".")
