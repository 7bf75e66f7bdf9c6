"""Conversations of any API as jobs, and their answers as a stream of objects that an API's writer makes."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

from mistral_portable.answers import Delta
from mistral_portable.api import JSON, Conversation
from mistral_portable.engine import Generation
from mistral_portable.errors import InputError
from mistral_portable.server.service import Job, Service

__all__ = ["Writer", "job_of", "written"]


class Writer(Protocol):
    """Writes the objects of one streamed answer."""

    def begin(self) -> list[JSON]:
        """Those before the first delta."""

    def push(self, deltas: Iterable[Delta]) -> list[JSON]:
        """Those of further deltas."""

    def end(self, generation: Generation) -> list[JSON]:
        """Those at the end of the answer."""


def job_of(service: Service, conversation: Conversation) -> Job:
    """The job of a conversation, its chat encoded: call it in a thread.

    Raises TokenizerError for a chat that the model's template does not allow, InputError for what is not supported.
    """
    if conversation.schema is not None and conversation.tools:
        raise InputError("tools: an answer that follows a JSON schema cannot call them; leave out the one or the other")
    if conversation.tool_choice == "required":
        raise InputError("tool_choice: a call cannot be demanded yet; leave it to the model")
    if conversation.tools and not conversation.parallel:
        raise InputError("parallel tool calls cannot be forbidden yet; leave that out")
    tokens = service.model.tokenizer.chat(conversation.messages, tools=conversation.tools or None)
    options = {"chat": True, "schema": conversation.schema}
    return Job(prompts=[tokens], params=conversation.params, user=conversation.user, options=options)


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
