"""Service: the one object that the routes of all APIs need."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.answers import Content
from mistral_portable.answers import Delta as Part
from mistral_portable.api import UNSTATED
from mistral_portable.engine import Generation, Model
from mistral_portable.engine.prompts import Prompt
from mistral_portable.engine.request import Completion
from mistral_portable.engine.stream import Answer
from mistral_portable.errors import ClosedError, InputError
from mistral_portable.sampling import Sampled, SamplingParams, stated_sampling
from mistral_portable.server.metrics import Metrics
from mistral_portable.server.queue import Queue
from mistral_portable.server.settings import Settings

__all__ = ["Delta", "Job", "Service"]


@dataclass(frozen=True)
class Job:
    """A checked request as a job for the model, whatever its API.

    prompts: texts or token ids, encoded if that takes long (`Service.in_thread`). model: `Service.name_of` the one that
    was asked for, which answers name. n: answers to each. user: answers of one user share the steps with those of
    another alike. cache_salt: only prompts with the same one are found in the cache. options: further keyword arguments
    of `Model.answer`.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    model: str
    n: int = 1
    user: str = ""
    cache_salt: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Delta:
    """News of one of a job's answers.

    index: prompt number * n + number of the answer to it. parts: content, reasoning and pieces of tool calls; none if
    only tokens are new. sampled: the tokens taken since the last delta. generation: the whole answer, in its last delta
    only.
    """

    index: int
    parts: Sequence[Part]
    sampled: Sequence[Sampled]
    generation: Generation | None = None

    @property
    def text(self) -> str:
        """The content alone."""
        return "".join(part.text for part in self.parts if isinstance(part, Content))


class Service:
    """A model behind a queue, with counters. `model`, `settings`, `queue` and `metrics` are for reading.

    Used by one event loop. A coroutine that is cancelled, or a stream that is closed, gives its lanes back within a
    step: routes need not do more.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        """Raises InputError if an adapter of the settings has the alias for its name, or is not the model's, and if the
        model's way of sampling is wanted and not stated, or not supported."""
        for name in settings.adapters:
            if name == settings.alias:
                raise InputError(f"{name!r} is the name of the model and of an adapter: give the model another --alias")
            if name not in model.adapters:
                raise InputError(f"adapter {name!r} is not loaded: load the model with it")
        self.model = model
        self.settings = settings
        self.queue = Queue(lanes=model.manager.spec.max_lanes, waiting=settings.max_queue)
        self.metrics = Metrics(model, self.queue)
        self.stated = stated_sampling(model.generation) if settings.sampling == "model" else UNSTATED
        """Fields of SamplingParams for requests that leave them open."""
        SamplingParams(**self.stated)  # what is out of range is refused now, not in each request
        self.created = int(time.time())
        """Unix time at which the server began."""
        self._running: set[Completion] = set()
        self._ended = False

    async def run(self, job: Job) -> list[Generation]:
        """The answers to a job, `n` for each prompt. Errors: those of `stream`."""
        found: dict[int, Generation] = {}
        async with aclosing(self.stream(job)) as deltas:
            async for delta in deltas:
                if delta.generation is not None:
                    found[delta.index] = delta.generation
        return [found[index] for index in sorted(found)]

    async def stream(self, job: Job) -> AsyncGenerator[Delta, None]:
        """The answers to a job as they are made; those of several run together, each delta says whose it is.

        Close it (`contextlib.aclosing`) if it is left early. Raises QueueFull if too many wait, the errors of
        `Model.generate`, ClosedError if the server ends before the answer does.
        """
        with self.queue.admit(len(job.prompts) * job.n):
            answers = await self.in_thread(self._answers, job)
            self._check_open()
            indices = {answer.completion: index for index, answer in enumerate(answers)}
            self._running.update(indices)
            try:
                async with aclosing(self.model.loop.arun(list(indices))) as made:
                    async for completion in made:
                        index = indices[completion]
                        delta = _take(index, answers[index])
                        if delta.generation is not None:
                            self.model.loop.leave(completion)
                            self.metrics.count_answer(delta.generation)
                        if delta.parts or delta.generation is not None or job.params.logprobs is not None:
                            yield delta
            finally:
                self._running.difference_update(indices)
            if not all(answer.done for answer in answers):
                self._check_open()

    async def embed(self, prompts: Sequence[Prompt], model: str) -> tuple[NDArray[np.float32], int]:
        """Vectors of prompts, float32 [prompts, hidden_size], and the number of their tokens; as many run at a time as
        there are lanes. model: as `Job.model`.

        Raises InputError if the server makes none, QueueFull if too many answers wait, the errors of `Model.embed`,
        ClosedError if the server ends before all are made.
        """
        pooling = self.settings.embeddings
        if pooling is None:
            raise InputError("embeddings: this server makes none: start it with --embeddings")
        self.check_ready()  # before the work of encoding
        encoded = await self.in_thread(self._encoded, prompts)
        parts: list[NDArray[np.float32]] = []
        for begin in range(0, len(encoded), self.queue.lanes):
            some = encoded[begin : begin + self.queue.lanes]
            self._check_open()
            with self.queue.admit(len(some)):
                parts.append(await self.model.aembed(some, pooling=pooling, adapter=self.adapter(model)))
        return np.concatenate(parts), sum(map(len, encoded))

    async def in_thread(self, function: Any, *arguments: Any) -> Any:
        """Call a function that takes long, such as the encoding of a chat, in a thread; return its result."""
        return await asyncio.to_thread(function, *arguments)

    def end(self) -> None:
        """End all answers that run or wait; `stream` raises ClosedError for each that is not complete."""
        self._ended = True
        for completion in list(self._running):
            self.model.loop.leave(completion)
            if completion.listener is not None:
                completion.listener()

    def name_of(self, model: str | None) -> str:
        """The name of the model that answers whoever asks for this one: an adapter's own, or else the alias.

        Clients of Ollama's API add ":latest".
        """
        for wanted in (model or "", (model or "").removesuffix(":latest")):
            if wanted in self.settings.adapters:
                return wanted
        return self.settings.alias

    def adapter(self, name: str) -> Mapping[str, float]:
        """The adapters of a model of this name (`name_of`), as `Model.answer` takes them: one, or none."""
        weights = self.settings.adapters
        return {name: weights[name]} if name in weights else {}

    def check_ready(self) -> None:
        """Raise QueueFull or ClosedError if a request would be refused now, whatever it asks."""
        self._check_open()
        self.queue.check()

    def _check_open(self) -> None:
        if self._ended:
            raise ClosedError("the server is shutting down: ask again later")

    def _encoded(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        encoded = []
        for index, prompt in enumerate(prompts):
            with _naming(index, len(prompts)):
                encoded.append(self.model.encode(prompt))
        return encoded

    def _answers(self, job: Job) -> list[Answer]:
        answers = []
        for index, prompt in enumerate(job.prompts):
            with _naming(index, len(job.prompts)):
                answers += self._answers_to(prompt, job)
        return answers

    def _answers_to(self, prompt: Prompt, job: Job) -> list[Answer]:
        params = self._limited(job.params)
        return self.model.answers(
            prompt,
            params,
            job.n,
            user=job.user,
            cache_salt=job.cache_salt,
            adapter=self.adapter(job.model),
            **job.options,
        )

    def _limited(self, params: SamplingParams) -> SamplingParams:
        """The params with at most the operator's number of tokens."""
        most = self.settings.max_tokens
        if most is None or (params.max_tokens is not None and params.max_tokens <= most):
            return params
        return replace(params, max_tokens=most)


@contextmanager
def _naming(index: int, count: int) -> Iterator[None]:
    """Let an InputError about one of `count` prompts say which one it is."""
    try:
        yield
    except InputError as error:
        if count == 1:
            raise
        raise type(error)(f"prompt {index}: {error}") from error


def _take(index: int, answer: Answer) -> Delta:
    """Take all that there is: if the client or this process is slow, several tokens become one delta."""
    before = len(answer.sampled)
    parts = answer.take()
    while not answer.done and answer.completion.made:
        parts += answer.take()
    return Delta(index, parts, answer.sampled[before:], answer.generation if answer.done else None)
