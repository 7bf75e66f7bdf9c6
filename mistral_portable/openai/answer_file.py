"""The file of a batch's answers: which are there already, and how more are appended."""

import os
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import IO

from mistral_portable.errors import InputError, MistralPortableError
from mistral_portable.openai.batch_lines import BEGINNING, lines_of, parse_object

__all__ = ["AnswerFile", "answered", "read_answers"]


class AnswerFile:
    """A file on this machine, which lines are appended to. One that was cut off, as the process died, is removed.

    done: the custom_ids that it held when it was opened.
    """

    def __init__(self, path: Path, known: Set[str]) -> None:
        """known: custom_ids of all requests. Raises the errors of `answered`."""
        self.done: Set[str]
        self.done, end = answered(path, known)
        self._path = path
        try:
            if not _keeps_nothing(path) and path.exists():
                os.truncate(path, end)
            self._file = path.open("ab")
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}: choose another place") from error

    def add(self, line: bytes) -> None:
        """Append a line. Raises MistralPortableError if it cannot be written, as the disk is full, say."""
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise MistralPortableError(
                f"{self._path}: cannot be written: {error.strerror}; started again, the batch goes on where it stopped"
            ) from error

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # `add` has written all, or has said why not
            self._file.close()


def answered(path: Path, known: Set[str]) -> tuple[set[str], int]:
    """The custom_ids that a file holds, and the bytes of its whole lines; none, if it is not there or keeps nothing.

    Changes nothing. known: custom_ids of all requests. Raises InputError if the file holds anything but answers to
    them, or can be neither made nor written.
    """
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written: choose another place")
    if not path.exists() or _keeps_nothing(path):
        return set(), 0
    try:
        with path.open("rb") as file:
            return read_answers(file, str(path), known)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_answers(file: IO[bytes], name: str, known: Set[str]) -> tuple[set[str], int]:
    """The custom_ids that a file of answers holds, and the bytes of its whole lines: the last may have been cut off.

    known: custom_ids of all requests. Raises InputError, which begins with `name`, if there is anything else.
    """
    done: set[str] = set()
    end = 0
    for where, text in lines_of(file, name):
        if not text.endswith(b"\n"):
            if text[: len(BEGINNING)] != BEGINNING[: len(text)]:
                raise InputError(f"{where}: no answer of a batch: give another file for answers")
            break
        custom_id = parse_object(text, where).get("custom_id")
        if not isinstance(custom_id, str) or custom_id not in known:
            raise InputError(f"{where}: answers {custom_id!r}, which nobody asked: give another file for the answers")
        done.add(custom_id)
        end += len(text)
    return done, end


def _keeps_nothing(path: Path) -> bool:
    """Whether it is a pipe or a device, such as /dev/stdout on a terminal: what is read there is nobody's answer."""
    return path.exists() and not path.is_file() and not path.is_dir()
