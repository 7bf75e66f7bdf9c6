"""Answers of Anthropic's API: messages, models and errors.

Sources: https://docs.claude.com/en/api/messages, https://docs.claude.com/en/api/errors,
https://docs.claude.com/en/api/models-list.
"""

import json
import uuid
from datetime import UTC, datetime

from mistral_portable.api import JSON
from mistral_portable.engine import Generation

__all__ = [
    "empty_message",
    "error",
    "message",
    "model_card",
    "stop_reason",
    "text_block",
    "thinking_block",
    "tool_block",
    "usage",
]


def message(generation: Generation, model: str) -> JSON:
    """The whole answer."""
    blocks = [thinking_block(generation.reasoning)] if generation.reasoning else []
    blocks += [text_block(generation.text)] if generation.text else []
    blocks += [tool_block(call.id, call.name, json.loads(call.arguments)) for call in generation.tool_calls]
    reason, sequence = stop_reason(generation)
    return {
        **empty_message(model),
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage(generation),
    }


def empty_message(model: str) -> JSON:
    """The answer before anything of it is there."""
    return {
        "id": _new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _new_id(kind: str) -> str:
    """An id of its own, such as "msg_0a1b..."."""
    return f"{kind}_{uuid.uuid4().hex}"


def text_block(text: str) -> JSON:
    """A block of text."""
    return {"type": "text", "text": text}


def thinking_block(text: str) -> JSON:
    """A block of reasoning; nobody signs it."""
    return {"type": "thinking", "thinking": text, "signature": ""}


def tool_block(id: str, name: str, arguments: JSON) -> JSON:
    """A call."""
    return {"type": "tool_use", "id": id, "name": name, "input": arguments}


def stop_reason(generation: Generation) -> tuple[str, str | None]:
    """Why the answer has ended, and the stop string that ended it."""
    if generation.stop_string is not None:
        return "stop_sequence", generation.stop_string
    if generation.finish_reason == "length":
        return "max_tokens", None
    return "tool_use" if generation.tool_calls else "end_turn", None


def usage(generation: Generation) -> JSON:
    """The numbers of tokens: `input_tokens` are those of the prompt that were not in the cache."""
    timings = generation.timings
    return {
        "input_tokens": timings.prefill_tokens - timings.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": timings.cached_tokens,
        "output_tokens": len(generation.tokens),
    }


_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def model_card(name: str, created: int) -> JSON:
    """An entry of the list of models. created: Unix time."""
    at = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": name, "display_name": name, "created_at": at}


def error(status: int, text: str) -> JSON:
    """The body of an error. status: HTTP's."""
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": _new_id("req")}
