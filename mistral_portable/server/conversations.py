"""Conversations of any API as jobs, and their answers: whole, or as a stream of objects that an API's writer makes."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

from mistral_portable.answers import Delta, offered
from mistral_portable.api import JSON, Conversation, Stated
from mistral_portable.engine import Generation
from mistral_portable.errors import InputError
from mistral_portable.server.service import Job, Service

__all__ = ["Asking", "Writer", "prepare", "whole", "written"]


class Asking(Protocol):
    """A checked request for an answer to a chat."""

    def to_conversation(self, stated: Stated) -> Conversation:
        """Return the conversation that it asks to continue. stated: see `sampling_params`."""


class Writer(Protocol):
    """Writes the objects of one streamed answer."""

    def begin(self) -> list[JSON]:
        """Those before the first delta."""

    def push(self, deltas: Iterable[Delta]) -> list[JSON]:
        """Those of further deltas."""

    def end(self, generation: Generation) -> list[JSON]:
        """Those at the end of the answer."""


def prepare(service: Service, request: Asking) -> Job:
    """The job of a request, its chat encoded: call it in a thread.

    Raises TokenizerError for a chat that the model's template does not allow, InputError for what is not supported.
    """
    conversation = request.to_conversation(service.stated)
    tools, choice = conversation.tools, conversation.tool_choice
    shown = offered(tools, choice)
    if conversation.schema is not None and shown:
        raise InputError("tools: an answer that follows a JSON schema cannot call them; leave out the one or the other")
    tokens = service.model.tokenizer.chat(conversation.messages, tools=shown or None)
    options = {
        "chat": True,
        "schema": conversation.schema,
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": conversation.parallel,
    }
    model = service.name_of(conversation.model)
    return Job([tokens], conversation.params, model, user=conversation.user, options=options)


async def whole(service: Service, job: Job) -> Generation:
    """A job's one answer. Raises the errors of `Service.stream`."""
    (generation,) = await service.run(job)
    return generation


async def written(service: Service, job: Job, writer: Writer) -> AsyncGenerator[JSON, None]:
    """The objects of a job's one answer, as it is made. Raises the errors of `Service.stream`."""
    begun = False
    async with aclosing(service.stream(job)) as deltas:
        async for delta in deltas:
            if not begun:
                begun = True
                for one in writer.begin():
                    yield one
            for one in writer.push(delta.parts):
                yield one
            if delta.generation is not None:
                for one in writer.end(delta.generation):
                    yield one
