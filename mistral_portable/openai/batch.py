"""Batches: a file of requests, one in a line, and a file of answers, in OpenAI's batch format.

A request is {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}; its answer
{"id": ..., "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}; where
there is none the status is 400 or 500, and the body {"error": {"code": ..., "message": ..., "type": ...}}.
Source: https://platform.openai.com/docs/guides/batch.
"""

import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mistral_portable.engine import Model
from mistral_portable.engine.request import Completion
from mistral_portable.engine.stream import Answer
from mistral_portable.errors import ClosedError, InputError, MistralPortableError, TokenizerError
from mistral_portable.openai.answers import chat_completion, text_completion
from mistral_portable.openai.requests import ChatRequest, TextRequest, parse_request

__all__ = ["BatchResult", "check_files", "run_batch"]

_BEGINNING = b'{"id": "batch_req_'
_COMPARED = 1000  # characters of a prompt by which requests are sorted


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


@dataclass
class _Job:
    """A request that runs. answers: `n` for each prompt."""

    custom_id: str
    request: ChatRequest | TextRequest
    answers: list[Answer] = field(default_factory=list)
    left: int = 0


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
    with source.open("rb") as requests, target.open("ab") as out:
        out.truncate(files.end)
        return _run(model, requests, waiting, out, len(files.done), progress)


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
        done, end = _read_answers(target, {line.custom_id for line in lines})
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InputError(f"{target}: cannot be written: choose another place")
    return _Files(lines, done, end)


def _run(
    model: Model,
    requests: IO[bytes],
    lines: Sequence[_Line],
    out: IO[bytes],
    before: int,
    progress: Callable[[str, int, int], None] | None,
) -> BatchResult:
    jobs: dict[Completion, tuple[_Job, Answer]] = {}
    counts = {True: 0, False: 0}

    def write(custom_id: str, body: dict[str, Any], status: int) -> None:
        response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
        line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": None}
        out.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        out.flush()
        counts[status == 200] += 1
        if progress is not None:
            progress("requests", before + sum(counts.values()), before + len(lines))

    def fail(custom_id: str, error: MistralPortableError) -> None:
        if isinstance(error, ClosedError):
            raise error
        asked = isinstance(error, InputError | TokenizerError)
        kind, status = ("invalid_request_error", 400) if asked else ("server_error", 500)
        write(custom_id, {"error": {"code": status, "message": str(error), "type": kind}}, status)

    def completions() -> Iterator[Completion]:
        for line in lines:
            try:
                job = _start(model, line.custom_id, json.loads(_line_at(requests, line.offset)))
            except MistralPortableError as error:
                fail(line.custom_id, error)
                continue
            for answer in job.answers:
                jobs[answer.completion] = job, answer
                yield answer.completion

    with closing(model.loop.run(completions())) as made:
        for completion in made:
            job, answer = jobs[completion]
            try:
                answer.take()
            except MistralPortableError as error:
                for other in job.answers:
                    jobs.pop(other.completion, None)
                    model.loop.leave(other.completion)
                fail(job.custom_id, error)
                continue
            if answer.done:
                model.loop.leave(completion)
                del jobs[completion]
                job.left -= 1
                if not job.left:
                    write(job.custom_id, _body(model, job), 200)
    return BatchResult(counts[True], counts[False], before)


def _start(model: Model, custom_id: str, line: dict[str, Any]) -> _Job:
    request = parse_request(line["url"], line["body"])
    if request.stream:
        raise InputError("stream: a batch has no streams; leave it out")
    params, options = request.sampling(), request.options()
    job = _Job(custom_id, request)
    for prompt in request.prompts(lambda messages, **options: model.tokenizer.chat(messages, **options)):
        job.answers += model.answers(prompt, params, request.n, user=request.user or "", **options)
    job.left = len(job.answers)
    return job


def _body(model: Model, job: _Job) -> dict[str, Any]:
    generations = [answer.generation for answer in job.answers]
    name = job.request.model or Path(model.source).name
    if isinstance(job.request, ChatRequest):
        return chat_completion(generations, name, model.tokenizer)
    tokenizer = model.tokenizer if model.has_tokenizer else None
    return text_completion(generations, job.request.n, name, tokenizer)


def _read_requests(path: Path, file: IO[bytes]) -> list[_Line]:
    """All requests. Raises InputError that names the first line that is none, or whose custom_id is not its own."""
    lines: list[_Line] = []
    seen: dict[str, int] = {}
    offset = 0
    for number, text in enumerate(file, start=1):
        where = f"{path} line {number}"
        if text.strip():
            line = _object(text, where)
            custom_id, body = line.get("custom_id"), line.get("body")
            if not isinstance(custom_id, str) or not custom_id:
                raise InputError(f"{where}: custom_id={custom_id!r} must be a text of its own")
            if custom_id in seen:
                raise InputError(f"{where}: custom_id {custom_id!r} is that of line {seen[custom_id]}, too")
            if line.get("method", "POST") != "POST" or not isinstance(line.get("url"), str):
                raise InputError(f"{where}: it needs a method POST and a url")
            if not isinstance(body, dict):
                raise InputError(f"{where}: body={body!r:.40} must be an object")
            seen[custom_id] = number
            asked = body.get("messages", body.get("prompt"))
            lines.append(_Line(custom_id, offset, json.dumps(asked, ensure_ascii=False)[:_COMPARED]))
        offset += len(text)
    return lines


def _read_answers(path: Path, known: set[str]) -> tuple[set[str], int]:
    """The custom_ids that a file of answers holds, and the bytes of its whole lines: the last may have been cut off."""
    if not path.exists():
        return set(), 0
    done: set[str] = set()
    end = 0
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            where = f"{path} line {number}"
            if not text.endswith(b"\n"):
                if text[: len(_BEGINNING)] != _BEGINNING[: len(text)]:
                    raise InputError(f"{where}: no answer of a batch: give another file for answers")
                break
            custom_id = _object(text, where).get("custom_id")
            if custom_id not in known:
                raise InputError(
                    f"{where}: answers {custom_id!r}, which nobody asked: give another file for the answers"
                )
            done.add(custom_id)
            end += len(text)
    return done, end


def _object(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: {found!r:.40} must be an object")
    return found


def _line_at(file: IO[bytes], offset: int) -> bytes:
    file.seek(offset)
    return file.readline()
