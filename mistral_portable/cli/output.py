"""Output of the commands: answers to stdout, everything else to stderr, without terminal control characters."""

import os
import re
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mistral_portable.engine import Timings

__all__ = ["aside", "dim", "end_line", "note", "one_line", "printable", "show", "size", "speed"]

# A terminal obeys these, and a model or a file may hold any of them: C0 but tab and newline, DEL, C1.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with U+FFFD for each control character; tabs and newlines stay."""
    return _CONTROL.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The text on one printable line."""
    return printable(" ".join(text.split()))


def show(text: str) -> None:
    """Write a piece of an answer and flush it: unchanged, but printable on a terminal."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def end_line(text: str) -> None:
    """Write a newline unless `text` ends with one."""
    if not text.endswith("\n"):
        show("\n")


def note(text: str) -> None:
    """Write a line to stderr."""
    typer.echo(printable(text), err=True)


def aside(text: str) -> None:
    """Write a dim line to stderr, if that is a terminal."""
    if sys.stderr.isatty():
        dim(printable(text) + "\n")


def dim(text: str) -> None:
    """Write to stderr, dim where the terminal shows that and the user has not said NO_COLOR (no-color.org)."""
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    typer.secho(text, err=True, dim=None if plain else True, nl=False)


def size(count: int) -> str:
    """Format a number of bytes: 1536 -> "1.5 KiB"."""
    value, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{count} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def speed(timings: "Timings") -> str:
    """Format the speed of prompt and answer and the peak memory of a call as one line."""
    parts = [f"prompt {timings.prefill_tokens} tokens"]
    if timings.cached_tokens:
        parts[0] += f" ({timings.cached_tokens} cached)"
    if timings.prefill_s:
        parts[0] += f", {(timings.prefill_tokens - timings.cached_tokens) / timings.prefill_s:.1f}/s"
    if timings.decode_s:
        parts.append(f"answer {timings.decode_tokens + 1} tokens, {timings.decode_tokens / timings.decode_s:.1f}/s")
    if timings.drafted_tokens:
        parts[-1] += f" ({timings.accepted_tokens} of {timings.drafted_tokens} drafted)"
    if timings.peak_memory_bytes:
        parts.append(f"memory {size(timings.peak_memory_bytes)}")
    return "; ".join(parts)
