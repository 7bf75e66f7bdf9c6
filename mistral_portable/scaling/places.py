"""Places: folders and files, here or in an object store, by a path or a URL, and the requests in them.

URLs are pyarrow's (s3://, gs://, hdfs://, file://), or fsspec's where pyarrow knows none.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow import parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from mistral_portable.errors import InputError
from mistral_portable.openai.batch_lines import LONGEST, lines_of, parse_object

__all__ = ["Place", "request_files", "requests_in"]

_KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


@dataclass(frozen=True)
class Place:
    """A path in a file system of pyarrow's. text: as it was given."""

    system: FileSystem
    path: str
    text: str

    @classmethod
    def of(cls, text: str) -> "Place":
        """The place that a path or a URL names. Raises InputError if no file system here knows the URL."""
        if "://" not in text:
            return cls(LocalFileSystem(), str(Path(text).absolute()), text)
        try:
            system, path = FileSystem.from_uri(text)
            return cls(system, path, text)
        except (ArrowException, OSError):
            import fsspec

            try:
                system, path = fsspec.core.url_to_fs(text)
            except (ImportError, ValueError, OSError) as error:
                raise InputError(f"{text}: cannot be opened: {error}") from error
            return cls(PyFileSystem(FSSpecHandler(system)), path, text)

    @property
    def info(self) -> FileInfo:
        """Type and size of the place. Raises InputError if the file system does not tell."""
        try:
            return self.system.get_file_info(self.path)
        except OSError as error:
            raise InputError(f"{self.text}: cannot be read: {error}") from error

    def files(self, endings: Sequence[str]) -> list[str]:
        """Paths of all files below that end so, sorted. Hidden ones are not among them.

        Raises InputError if the file system does not list them.
        """
        try:
            found = self.system.get_file_info(FileSelector(self.path, recursive=True, allow_not_found=True))
        except OSError as error:
            raise InputError(f"{self.text}: cannot be read: {error}") from error
        return sorted(
            info.path
            for info in found
            if info.type == FileType.File and info.path.endswith(tuple(endings)) and not info.base_name.startswith(".")
        )


def request_files(place: Place) -> list[str]:
    """Paths of the files of requests: the place itself, or those below it. Raises InputError if there are none."""
    kind = place.info.type
    if kind == FileType.File:
        return [place.path]
    found = place.files(_KINDS) if kind == FileType.Directory else []
    if not found:
        what = "has no files" if kind == FileType.Directory else "does not exist: give a file, or a folder of files"
        raise InputError(f"{place.text}: {what} that end with {', '.join(_KINDS)}")
    return found


def requests_in(system: FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The requests in a file, each with where it stands ("in.jsonl line 3"), unchecked.

    A file that ends with .parquet has columns `custom_id`, `url`, `body` and perhaps `method`; a body is JSON, or a
    struct, of which fields that are null are left out. Any other has an object in each line, and may be compressed.

    Raises InputError if a file cannot be read, a line or a row is no object or too long, or a body no JSON.
    """
    try:
        yield from _rows(system, path) if path.endswith(".parquet") else _lines(system, path)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _lines(system: FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with io.BufferedReader(system.open_input_stream(path)) as file:
        for where, text in lines_of(file, path):
            if text.strip():
                yield where, parse_object(text, where)


def _rows(system: FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with system.open_input_file(path) as file:
        # One by one: a value that a file has once may be that of all its rows.
        for number, batch in enumerate(pq.ParquetFile(file).iter_batches(batch_size=1), 1):
            where = f"{path} row {number}"
            if batch.nbytes > LONGEST:
                raise InputError(f"{where}: it has more than {LONGEST >> 20} MiB: no request needs so much")
            row = _without_nulls(batch.to_pylist()[0])
            if isinstance(row.get("body"), str):
                row["body"] = parse_object(row["body"], f"{where}: body")
            try:
                json.dumps(row)
            except TypeError as error:
                raise InputError(f"{where}: no JSON: {error}") from error
            yield where, row


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
