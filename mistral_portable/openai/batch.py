"""Batches: a file of requests, one in a line, and a file of answers, in OpenAI's batch format (`batch_lines.py`)."""

import os
from collections.abc import Callable, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mistral_portable.engine import Model
from mistral_portable.errors import InputError
from mistral_portable.openai.batch_lines import (
    BEGINNING,
    answer_lines,
    beginning,
    check_request,
    lines_of,
    parse_object,
)

__all__ = ["BatchResult", "check_files", "check_target", "read_answers", "run_batch"]


@dataclass(frozen=True)
class BatchResult:
    """answered, failed: lines written by this call. before: those that were there already."""

    answered: int
    failed: int
    before: int


@dataclass(frozen=True)
class _Line:
    """A request's place in the file. beginning: of its prompt."""

    custom_id: str
    offset: int
    beginning: str


@dataclass(frozen=True)
class _Files:
    """lines: all requests. done: the custom_ids that are answered. end: bytes of whole lines of answers."""

    lines: list[_Line]
    done: set[str]
    end: int


def run_batch(
    model: Model, source: Path, target: Path, *, progress: Callable[[str, int, int], None] | None = None
) -> BatchResult:
    """Answer the requests of `source` whose answers are not in `target` yet, and append them, each as it is there.

    Prompts that begin alike run near each other. A line that was cut off, as the process died while it wrote it, is
    removed first. A request that cannot be answered gets a line that says why. progress: called as (what, done, total).
    Raises the errors of `check_files`.
    """
    files = check_files(source, target)
    waiting = sorted(
        (line for line in files.lines if line.custom_id not in files.done), key=lambda line: line.beginning
    )
    before, counts = len(files.done), {True: 0, False: 0}
    with source.open("rb") as requests, target.open("ab") as out:
        out.truncate(files.end)
        lines = answer_lines(model, (_request_at(requests, line.offset) for line in waiting))
        with closing(lines):
            for answered, text in lines:
                out.write(text)
                out.flush()
                counts[answered] += 1
                if progress is not None:
                    progress("requests", before + sum(counts.values()), before + len(waiting))
    return BatchResult(counts[True], counts[False], before)


def check_files(source: Path, target: Path) -> "_Files":
    """Read both files of a batch, and change nothing.

    Raises InputError if one cannot be read or written, a line of `source` is no request with a custom_id of its own, or
    `target` holds something else than answers to it.
    """
    if target.exists() and source.exists() and source.samefile(target):
        raise InputError(f"{target}: the answers need a file of their own")
    try:
        with source.open("rb") as requests:
            lines = _read_requests(source, requests)
        done, end = _answers_at(target, {line.custom_id for line in lines})
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    check_target(target)
    return _Files(lines, done, end)


def check_target(target: Path) -> None:
    """Raise InputError if a file of answers can be neither made nor written."""
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InputError(f"{target}: cannot be written: choose another place")


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


def _read_requests(path: Path, file: IO[bytes]) -> list[_Line]:
    """All requests. Raises InputError that names the first line that is none, or whose custom_id is not its own."""
    lines: list[_Line] = []
    seen: dict[str, str] = {}
    offset = 0
    for where, text in lines_of(file, str(path)):
        if text.strip():
            line = parse_object(text, where)
            check_request(line, where)
            custom_id = line["custom_id"]
            if custom_id in seen:
                raise InputError(f"{where}: custom_id {custom_id!r} is that of {seen[custom_id]}, too")
            seen[custom_id] = where
            lines.append(_Line(custom_id, offset, beginning(line)))
        offset += len(text)
    return lines


def _answers_at(path: Path, known: Set[str]) -> tuple[set[str], int]:
    if not path.exists():
        return set(), 0
    with path.open("rb") as file:
        return read_answers(file, str(path), known)


def _request_at(file: IO[bytes], offset: int) -> dict[str, Any]:
    file.seek(offset)
    return parse_object(file.readline(), file.name)
