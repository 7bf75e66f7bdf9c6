"""Messages of a chat from lines: a line, a block in triple quotes, or lines that end in a backslash."""

from collections.abc import Callable, Iterator

__all__ = ["ReadLine", "read_messages"]

ReadLine = Callable[[str], str | None]
"""Reads a line, for which a terminal shows the prompt that is given; None at the end."""

_QUOTES = '"""'


def read_messages(read: ReadLine) -> Iterator[str]:
    """Yield messages, and commands, which begin with a slash and are one line; further slashes are doubled.

    A line that begins with three quotes begins a block, up to the next three at the end of a line. A line that ends
    in a backslash goes on in the next one. What was pasted comes as one line with newlines in it.
    """
    while (line := read("> ")) is not None:
        if line.lstrip().startswith(_QUOTES):
            yield _escaped(_block(line.lstrip().removeprefix(_QUOTES), read))
            continue
        whole = _joined(line, read)
        yield _escaped(whole) if "\n" in whole and not whole.startswith("//") else whole


def _block(text: str, read: ReadLine) -> str:
    while not text.rstrip().endswith(_QUOTES) and (more := read("... ")) is not None:
        text += "\n" + more
    return text.rstrip().removesuffix(_QUOTES).strip("\n")


def _joined(line: str, read: ReadLine) -> str:
    while line.endswith("\\"):
        more = read("... ")
        line = line[:-1] if more is None else f"{line[:-1]}\n{more}"
    return line


def _escaped(message: str) -> str:
    return "/" + message if message.startswith("/") else message
