"""Read standard input: piped text as a whole, or lines that are piped or typed."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from threading import Timer

import typer

from mistral_portable.cli.output import note
from mistral_portable.cli.text import decode

__all__ = ["is_terminal", "read_lines", "read_text"]

_SILENCE = 3.0  # seconds


def is_terminal() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_text(*, asked: bool = False) -> str | None:
    """All of the piped text, without one newline at its end (from `echo`); None if nothing is piped.

    asked: what is typed on a terminal, up to Ctrl-D, is wanted, too. A pipe that stays silent for some seconds is
    waited for, with a note. Raises InputError for what is not UTF-8.
    """
    if sys.stdin is None or (is_terminal() and not asked):
        return None
    waiting = Timer(_SILENCE, note, ["note: waiting for standard input to end (none: < /dev/null)"])
    waiting.daemon = True
    if not is_terminal():
        waiting.start()
    try:
        return _decode(sys.stdin.buffer.read())
    finally:
        waiting.cancel()


def read_lines() -> Iterator[str]:
    """Yield lines without their newline. A terminal gets a prompt and a history; Ctrl-C raises KeyboardInterrupt.

    Raises InputError for a piped line that is not UTF-8.
    """
    if not is_terminal():
        yield from map(_decode, sys.stdin.buffer if sys.stdin else ())
        return
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  input() then edits lines and remembers them
    while True:
        try:
            yield _ask()
        except EOFError:
            typer.echo(err=True)
            return
        except KeyboardInterrupt:
            typer.echo(err=True)
            raise
        except UnicodeDecodeError:
            typer.echo("error: what was typed is not UTF-8", err=True)


def _ask() -> str:
    if sys.stdout.isatty():
        return input("> ")
    typer.echo("> ", nl=False, err=True)  # stdout takes the answers only
    return input()


def _decode(data: bytes) -> str:
    return decode(data, "standard input").removesuffix("\n").removesuffix("\r")
