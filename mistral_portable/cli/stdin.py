"""Read standard input: piped text as a whole, or piped lines."""

import os
import sys
from collections.abc import Iterator
from threading import Timer

from mistral_portable.cli.output import note
from mistral_portable.cli.text import decode

__all__ = ["interrupts", "is_terminal", "read_lines", "read_text"]

_SILENCE = 3.0  # seconds


def is_terminal() -> bool:
    """Tell whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def interrupts() -> bool:
    """Tell whether standard input is a terminal whose Ctrl-C comes to this process. It does not where a launcher, such
    as torchrun, has given the process a session of its own: the launcher gets it, and ends all that it has started."""
    if not is_terminal():
        return False
    if hasattr(os, "tcgetpgrp"):
        try:
            os.tcgetpgrp(sys.stdin.fileno())
        except OSError:  # ENOTTY: it is the terminal of another session
            return False
    return True


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
    """Yield piped lines without their newline. Raises InputError for one that is not UTF-8."""
    yield from map(_decode, sys.stdin.buffer if sys.stdin else ())


def _decode(data: bytes) -> str:
    return decode(data, "standard input").removesuffix("\n").removesuffix("\r")
