"""Answers of /v1/responses: the response object and its items.

Source: https://platform.openai.com/docs/api-reference/responses/object. Tokens of reasoning are not told apart from
others: `reasoning_tokens` is 0.
"""

import time
import uuid
from collections.abc import Sequence

from mistral_portable.api import JSON
from mistral_portable.engine import Generation

__all__ = ["Response", "call_item", "message_item", "new_id", "reasoning_item", "reasoning_part", "text_part"]


class Response:
    """One response object, in each state of it."""

    def __init__(self, model: str, settings: JSON) -> None:
        """settings: the fields that it repeats of the request (`ResponseRequest.settings`)."""
        self._fixed = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "background": False,
            "error": None,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "top_logprobs": 0,
            "truncation": "disabled",
            **settings,
        }

    def begun(self) -> JSON:
        """The object while the answer is made."""
        return {**self._fixed, "status": "in_progress", "incomplete_details": None, "output": []}

    def ended(self, generation: Generation, output: Sequence[JSON]) -> JSON:
        """The object at the end. output: its items."""
        cut = generation.finish_reason == "length"
        state: JSON = {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": list(output),
            "usage": _usage(generation),
        }
        return {**self._fixed, **state, **({} if cut else {"completed_at": int(time.time())})}

    def failed(self, message: str, code: str = "server_error") -> JSON:
        """The object of an answer that ended by an error."""
        return {**self.begun(), "status": "failed", "error": {"code": code, "message": message}}

    def whole(self, generation: Generation) -> JSON:
        """The object of a whole answer."""
        status = "incomplete" if generation.finish_reason == "length" else "completed"
        items = [reasoning_item(new_id("rs"), [reasoning_part(generation.reasoning)])] if generation.reasoning else []
        if generation.text or not generation.tool_calls:
            items.append(message_item(new_id("msg"), [text_part(generation.text)], status))
        items += [call_item(new_id("fc"), call.id, call.name, call.arguments) for call in generation.tool_calls]
        return self.ended(generation, items)


def new_id(kind: str) -> str:
    """An id of its own, such as "msg_0a1b..."."""
    return f"{kind}_{uuid.uuid4().hex}"


def text_part(text: str) -> JSON:
    """A part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_part(text: str) -> JSON:
    """A part of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def message_item(id: str, content: Sequence[JSON], status: str = "completed") -> JSON:
    """An item of text."""
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": list(content)}


def reasoning_item(id: str, content: Sequence[JSON]) -> JSON:
    """An item of reasoning, as it is: there is no summary."""
    return {"id": id, "type": "reasoning", "summary": [], "content": list(content)}


def call_item(id: str, call_id: str, name: str, arguments: str, status: str = "completed") -> JSON:
    """An item that calls a function. arguments: JSON."""
    return {
        "id": id,
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": status,
    }


def _usage(generation: Generation) -> JSON:
    asked, made = generation.timings.prefill_tokens, len(generation.tokens)
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": generation.timings.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + made,
    }
