"""Lines of OpenAI's batch format: what makes a request, and the answers to many.

A request is {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}; its answer
{"id": ..., "custom_id": "a", "response": {"status_code": 200, "request_id": ..., "body": {...}}, "error": null}; where
there is none the status is 400 or 500, and the body {"error": {"code": ..., "message": ..., "type": ...}}.
Source: https://platform.openai.com/docs/guides/batch.
"""

import json
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
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

__all__ = [
    "BEGINNING",
    "LONGEST",
    "AnswerLine",
    "answer_lines",
    "beginning",
    "check_request",
    "lines_of",
    "parse_object",
]

BEGINNING = b'{"id": "batch_req_'
"""Begins every line of an answer."""
LONGEST = 64 * 2**20
"""Bytes of a line, of requests and of answers: what is written must be readable when a batch goes on."""
_COMPARED = 1000  # characters of a prompt by which requests are sorted
_NAMED = 1000  # characters of a custom_id, which is in every answer and in memory

AnswerLine = tuple[bool, bytes]
"""Whether the request has an answer (status 200), and the line, with its end."""


@dataclass
class _Job:
    """A request that runs. answers: `n` for each prompt."""

    custom_id: str
    request: ChatRequest | TextRequest
    answers: list[Answer] = field(default_factory=list)
    left: int = 0


def lines_of(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    """The lines of a file of requests, each with where it stands: "in.jsonl line 3". A compressed one may be of any
    length, so there is a limit. Raises InputError, which begins so, if one is longer."""
    number = 0
    while text := file.readline(LONGEST + 1):
        number += 1
        where = f"{name} line {number}"
        if len(text) > LONGEST:
            raise InputError(f"{where}: it has more than {LONGEST >> 20} MiB: no request needs so much")
        yield where, text


def parse_object(text: bytes | str, where: str) -> dict[str, Any]:
    """Parse a line. where: names it. Raises InputError if it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{where}: {found!r:.40} must be an object")
    return found


def check_request(line: Mapping[str, Any], where: str) -> None:
    """Raise InputError, which begins with `where`, if a line is no request. Its body is checked as it is answered."""
    custom_id, body = line.get("custom_id"), line.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _NAMED:
        raise InputError(f"{where}: custom_id={custom_id!r:.60} must be a text of its own, of 1 to {_NAMED} characters")
    if line.get("method", "POST") != "POST" or not isinstance(line.get("url"), str):
        raise InputError(f"{where}: it needs a method POST and a url")
    if not isinstance(body, dict):
        raise InputError(f"{where}: body={body!r:.40} must be an object")


def beginning(line: Mapping[str, Any]) -> str:
    """The first characters of a request's prompt, as JSON: requests sorted by them find each other's in the cache.

    >>> beginning({"body": {"prompt": "Once"}})
    '"Once"'
    """
    body = line["body"]
    return json.dumps(body.get("messages", body.get("prompt")), ensure_ascii=False)[:_COMPARED]


def answer_lines(model: Model, requests: Iterable[Mapping[str, Any]]) -> Generator[AnswerLine, None, None]:
    """Answer requests, as many at a time as the model has lanes; yield the line of each as soon as it is made.

    A request that cannot be answered gets a line that says why. Close it if it is left early. Raises ClosedError if the
    model is closed.
    """
    jobs: dict[Completion, tuple[_Job, Answer]] = {}
    failed: deque[AnswerLine] = deque()

    def completions() -> Iterator[Completion]:
        for line in requests:
            try:
                job = _start(model, line)
            except MistralPortableError as error:
                failed.append(_failure(line["custom_id"], error))
                continue
            for answer in job.answers:
                jobs[answer.completion] = job, answer
                yield answer.completion

    with closing(model.loop.run(completions())) as made:
        for completion in made:
            while failed:
                yield failed.popleft()
            job, answer = jobs[completion]
            try:
                answer.take()
            except MistralPortableError as error:
                for other in job.answers:
                    jobs.pop(other.completion, None)
                    model.loop.leave(other.completion)
                yield _failure(job.custom_id, error)
                continue
            if answer.done:
                model.loop.leave(completion)
                del jobs[completion]
                job.left -= 1
                if not job.left:
                    yield _answer(model, job)
    yield from failed


def _answer(model: Model, job: _Job) -> AnswerLine:
    line = _line(job.custom_id, _body(model, job), 200)
    if len(line) <= LONGEST:
        return True, line
    fault = (
        f"the answer has {len(line)} bytes, more than {LONGEST >> 20} MiB: ask for fewer choices or log-probabilities"
    )
    return _failure(job.custom_id, InputError(fault))


def _failure(custom_id: str, error: MistralPortableError) -> AnswerLine:
    if isinstance(error, ClosedError):
        raise error
    asked = isinstance(error, InputError | TokenizerError)
    kind, status = ("invalid_request_error", 400) if asked else ("server_error", 500)
    return False, _line(custom_id, {"error": {"code": status, "message": str(error), "type": kind}}, status)


def _line(custom_id: str, body: dict[str, Any], status: int) -> bytes:
    response = {"status_code": status, "request_id": uuid.uuid4().hex, "body": body}
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": None}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _start(model: Model, line: Mapping[str, Any]) -> _Job:
    request = parse_request(line["url"], line["body"])
    if request.stream:
        raise InputError("stream: a batch has no streams; leave it out")
    params, options = request.sampling(), request.options()
    job = _Job(line["custom_id"], request)
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
