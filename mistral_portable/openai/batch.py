"""Batches: a file of requests, one in a line, and a file of answers, in OpenAI's batch format (`batch_lines.py`)."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mistral_portable.engine import Model
from mistral_portable.errors import InputError
from mistral_portable.openai.answer_file import AnswerFile, answered
from mistral_portable.openai.batch_lines import (
    answer_lines,
    beginning,
    check_request,
    lines_of,
    parse_object,
)

__all__ = ["BatchResult", "check_files", "run_batch"]


@dataclass(frozen=True)
class BatchResult:
    """answered, failed: lines written by this call. before: those that were there already."""

    answered: int
    failed: int
    before: int


@dataclass(frozen=True)
class _Line:
    """A request's place in the file. beginning: of its prompt."""

    offset: int
    beginning: str


def run_batch(
    model: Model, source: Path, target: Path, *, progress: Callable[[str, int, int], None] | None = None
) -> BatchResult:
    """Answer the requests of `source` whose answers are not in `target` yet, and append them, each as it is there.

    Prompts that begin alike run near each other. A line that was cut off, as the process died while it wrote it, is
    removed first. A request that cannot be answered gets a line that says why. progress: called as (what, done, total).
    Raises the errors of `check_files`, and MistralPortableError if an answer cannot be written.
    """
    lines = _requests(source, target)
    counts = {True: 0, False: 0}
    with source.open("rb") as requests, closing(AnswerFile(target, lines.keys())) as out:
        waiting = sorted(
            (lines[name] for name in lines.keys() - out.done), key=lambda line: (line.beginning, line.offset)
        )
        before = len(out.done)
        with closing(answer_lines(model, (_request_at(requests, line.offset) for line in waiting))) as answers:
            for made, text in answers:
                out.add(text)
                counts[made] += 1
                if progress is not None:
                    progress("requests", before + sum(counts.values()), before + len(waiting))
    return BatchResult(counts[True], counts[False], before)


def check_files(source: Path, target: Path) -> None:
    """Read both files of a batch, and change nothing.

    Raises InputError if one cannot be read or written, a line of `source` is no request with a custom_id of its own, or
    `target` holds something else than answers to it.
    """
    answered(target, _requests(source, target).keys())


def _requests(source: Path, target: Path) -> dict[str, _Line]:
    """All requests by custom_id. Raises InputError for a file that cannot be read, and names the first line that is no
    request, or whose custom_id is not its own."""
    if target.exists() and source.exists() and source.samefile(target):
        raise InputError(f"{target}: the answers need a file of their own")
    if source.is_fifo():  # each request is read again when its turn comes
        raise InputError(f"{source}: a pipe cannot be read twice: write the requests to a file")
    lines: dict[str, _Line] = {}
    names: dict[str, str] = {}
    offset = 0
    try:
        with source.open("rb") as file:
            for where, text in lines_of(file, str(source)):
                if text.strip():
                    line = parse_object(text, where)
                    check_request(line, where)
                    custom_id = line["custom_id"]
                    if custom_id in lines:
                        raise InputError(f"{where}: custom_id {custom_id!r} is that of {names[custom_id]}, too")
                    names[custom_id] = where
                    lines[custom_id] = _Line(offset, beginning(line))
                offset += len(text)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error
    return lines


def _request_at(file: IO[bytes], offset: int) -> dict[str, Any]:
    file.seek(offset)
    return parse_object(file.readline(), file.name)
