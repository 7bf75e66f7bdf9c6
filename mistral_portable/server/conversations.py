"""Conversations of any API as jobs, and their answers: whole, or as a stream of objects that an API's writer makes."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from mistral_portable.answers import CallArguments, CallBegin, CallFailed, Delta
from mistral_portable.api import JSON, Conversation
from mistral_portable.engine import Generation
from mistral_portable.errors import InputError
from mistral_portable.server.service import Job, Service

__all__ = ["Asking", "Writer", "prepare", "whole", "written"]


class Asking(Protocol):
    """A checked request for an answer to a chat."""

    def to_conversation(self) -> Conversation:
        """Return the conversation that it asks to continue."""


class Writer(Protocol):
    """Writes the objects of one streamed answer."""

    def begin(self) -> list[JSON]:
        """Those before the first delta."""

    def push(self, deltas: Iterable[Delta]) -> list[JSON]:
        """Those of further deltas."""

    def end(self, generation: Generation) -> list[JSON]:
        """Those at the end of the answer."""


def prepare(service: Service, request: Asking) -> tuple[Conversation, Job]:
    """The conversation of a request and its job, the chat encoded: call it in a thread.

    Raises TokenizerError for a chat that the model's template does not allow, InputError for what is not supported.
    """
    conversation = request.to_conversation()
    if conversation.schema is not None and conversation.tools:
        raise InputError("tools: an answer that follows a JSON schema cannot call them; leave out the one or the other")
    if conversation.tool_choice == "required":
        raise InputError("tool_choice: a call cannot be demanded yet; leave it to the model")
    tokens = service.model.tokenizer.chat(conversation.messages, tools=conversation.tools or None)
    options = {"chat": True, "schema": conversation.schema}
    return conversation, Job([tokens], conversation.params, user=conversation.user, options=options)


async def whole(service: Service, job: Job, *, parallel: bool = True) -> Generation:
    """A job's one answer. parallel: whether it may call several tools; else the first call counts. Raises the errors of
    `Service.stream`."""
    (generation,) = await service.run(job)
    return generation if parallel else _with_one_call(generation)


async def written(service: Service, job: Job, writer: Writer, *, parallel: bool = True) -> AsyncGenerator[JSON, None]:
    """The objects of a job's one answer, as it is made. parallel, errors: as `whole` has them."""
    begun = False
    async with aclosing(service.stream(job)) as deltas:
        async for delta in deltas:
            if not begun:
                begun = True
                for one in writer.begin():
                    yield one
            for one in writer.push(delta.parts if parallel else _of_one_call(delta.parts)):
                yield one
            if delta.generation is not None:
                for one in writer.end(delta.generation if parallel else _with_one_call(delta.generation)):
                    yield one


def _with_one_call(generation: Generation) -> Generation:
    return replace(generation, tool_calls=generation.tool_calls[:1])


def _of_one_call(deltas: Sequence[Delta]) -> list[Delta]:
    return [
        delta for delta in deltas if not (isinstance(delta, CallBegin | CallArguments | CallFailed) and delta.index)
    ]
