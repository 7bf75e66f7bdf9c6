"""Read standard input: piped text as a whole, or lines that are piped or typed."""

import sys
from collections.abc import Iterator
from contextlib import suppress

import typer

from mistral_portable.errors import InputError

__all__ = ["is_terminal", "read_lines", "read_text"]


def is_terminal() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_text() -> str | None:
    """All of the piped text, without one newline at its end (from `echo`); None if nothing is piped.

    Raises InputError if it is not UTF-8.
    """
    return None if sys.stdin is None or is_terminal() else _decode(sys.stdin.buffer.read())


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
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        where = f"byte {data[error.start]:#04x} at index {error.start}"
        raise InputError(f"standard input is not UTF-8 text: {where}") from error
