"""Where a batch's answers go, and which are there already."""

import threading
import time
import uuid
from collections.abc import Set
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from mistral_portable.errors import InputError
from mistral_portable.openai.answer_file import AnswerFile, read_answers
from mistral_portable.scaling.places import Place

__all__ = ["AnswerFolder", "answers_at"]

_LINES = 1000  # of a file in a folder


class AnswerFolder:
    """A folder, here or in an object store, to which files of up to 1,000 lines are added.

    A file is written under another name, `.NAME.partial`, and moved when it is whole: some seconds after its first
    answer, if not before. So a process that dies leaves whole files, and what it has not written is answered again.
    """

    def __init__(self, place: Place, known: Set[str], seconds: float = 10.0) -> None:
        """known: custom_ids of all requests. seconds: for which answers wait for others to share a file with. Raises
        InputError if a .jsonl file there holds anything but answers to them, or the folder cannot be made."""
        self._place, self._seconds = place, seconds
        found: set[str] = set()
        try:
            place.system.create_dir(place.path, recursive=True)
            for path in place.files([".jsonl"]):
                with place.system.open_input_stream(path) as file:
                    done, _ = read_answers(BytesIO(file.readall()), path, known)
                found |= done
        except OSError as error:
            raise InputError(f"{place.text}: cannot be written: {error}: choose another place") from error
        self.done: Set[str] = found
        self._lines: list[bytes] = []
        self._name = ""  # of the file for them: a second try writes to the same one
        self._end = 0.0  # when they must be written, by time.monotonic
        self._timer: threading.Timer | None = None
        self._turn = threading.Lock()

    def add(self, line: bytes) -> None:
        """Take a line, and write those that wait if there are enough, or the first has waited long."""
        with self._turn:
            if not self._lines:
                self._name = f"answers-{uuid.uuid4().hex}.jsonl"
                self._end = time.monotonic() + self._seconds
                self._timer = threading.Timer(self._seconds, self._write_late)
                self._timer.daemon = True
                self._timer.start()
            self._lines.append(line)
            if len(self._lines) >= _LINES or time.monotonic() >= self._end:
                self._write()

    def close(self) -> None:
        """Write the lines that wait."""
        with self._turn:
            self._write()

    def _write_late(self) -> None:
        """Write them while no line comes. What cannot be written the next call tries again, and says why."""
        with self._turn, suppress(Exception):  # stores raise errors of their own
            self._write()

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._lines:
            return
        partial = f"{self._place.path}/.{self._name}.partial"
        with self._place.system.open_output_stream(partial, compression=None) as file:
            file.write(b"".join(self._lines))
        self._place.system.move(partial, f"{self._place.path}/{self._name}")
        self._lines.clear()


def answers_at(text: str, known: Set[str]) -> AnswerFile | AnswerFolder:
    """Open the place for answers: a file if a path here ends with .jsonl, else a folder. Errors: those of both."""
    if "://" not in text and text.endswith(".jsonl"):
        return AnswerFile(Path(text), known)
    return AnswerFolder(Place.of(text), known)
