"""Texts of the command line: arguments and files, as Unicode."""

import os
from pathlib import Path

import typer

from mistral_portable.errors import InputError

__all__ = ["decode", "read_file", "text"]

_UTF8_MARK = "\ufeff"  # Windows' editors write it at the beginning of a file
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # and its shells these, in files of `>`


def text(word: str) -> str:
    """An argument as text, for typer's `parser`. Under a locale that is not of UTF-8 Python makes surrogates of bytes.

    Raises typer.BadParameter for bytes that are not UTF-8.
    """
    try:
        word.encode()
        return word
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(word).decode()
    except UnicodeError as error:
        raise typer.BadParameter(f"it is not UTF-8 text: {_place(error)}") from error


def decode(data: bytes, what: str) -> str:
    """Bytes of UTF-8 as text, without a mark at the beginning. Raises InputError, which names `what` they are."""
    try:
        return data.decode().removeprefix(_UTF8_MARK)
    except UnicodeDecodeError as error:
        remedy = ", it looks like UTF-16: save it as UTF-8" if data.startswith(_UTF16_MARKS) else ""
        raise InputError(f"{what} is not UTF-8 text: {_place(error)}{remedy}") from error


def read_file(path: str, limit: int = -1) -> str:
    """The text of a file. limit: of bytes; -1: all of it. Raises InputError if it cannot be read or is not UTF-8."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(limit)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    return decode(data, path)


def _place(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.object[error.start]:#04x} at index {error.start}"
    return str(error)
