"""Answers of Ollama's API: the lines of a stream, whole answers, and errors. Durations are in nanoseconds.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from mistral_portable.answers import Content, Delta, Reasoning, ToolCall
from mistral_portable.api import JSON, Part, WholeCalls
from mistral_portable.engine import Generation
from mistral_portable.sampling import Sampled
from mistral_portable.tokenizer import Tokenizer

__all__ = ["ChatLines", "GenerateLines", "Lines", "error"]


class Lines:
    """Writes the lines of one answer, each a JSON object."""

    def __init__(self, model: str) -> None:
        """model: as the client wrote it."""
        self._model = model
        self._calls = WholeCalls()

    def begin(self) -> list[JSON]:
        """The lines before the first delta: there are none."""
        return []

    def push(self, deltas: Iterable[Delta]) -> list[JSON]:
        """The lines of further deltas."""
        return self._write(self._calls.push(deltas))

    def end(self, generation: Generation) -> list[JSON]:
        """The lines at the end of the answer; the last one says why it ended, and the counts."""
        return [{**self._line(""), **_ending(generation)}]

    def whole(self, generation: Generation, tokenizer: Tokenizer) -> JSON:
        """The answer in one object."""
        line = self._line(generation.text, generation.reasoning, generation.tool_calls)
        scores = [] if generation.logprobs is None else [_logprob(one, tokenizer) for one in generation.logprobs]
        return {**line, **_ending(generation), **({"logprobs": scores} if scores else {})}

    def loaded(self) -> JSON:
        """The answer to a request that asks for nothing but that the model is loaded, which it is."""
        return {**self._line(""), "done": True, "done_reason": "load"}

    def _write(self, parts: Iterable[Part]) -> list[JSON]:
        lines = []
        for part in parts:
            match part:
                case Content(text):
                    lines.append(self._line(text))
                case Reasoning(text):
                    lines.append(self._line("", text))
                case ToolCall():
                    lines.append(self._line("", "", [part]))
        return [{**line, "done": False} for line in lines]

    def _line(self, text: str, reasoning: str = "", calls: Sequence[ToolCall] = ()) -> JSON:
        return {"model": self._model, "created_at": _now(), **self._fields(text, reasoning, calls)}

    def _fields(self, text: str, reasoning: str, calls: Sequence[ToolCall]) -> JSON:
        raise NotImplementedError


class ChatLines(Lines):
    """Writes answers of /api/chat."""

    def _fields(self, text: str, reasoning: str, calls: Sequence[ToolCall]) -> JSON:
        message: JSON = {"role": "assistant", "content": text}
        if reasoning:
            message["thinking"] = reasoning
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        return {"message": message}


class GenerateLines(Lines):
    """Writes answers of /api/generate. It has no tools: what a model writes as a call of none is left out."""

    def _fields(self, text: str, reasoning: str, calls: Sequence[ToolCall]) -> JSON:
        return {"response": text, **({"thinking": reasoning} if reasoning else {})}


def error(text: str) -> JSON:
    """The body of an error, and the line of one amid a stream."""
    return {"error": text}


def _ending(generation: Generation) -> JSON:
    timings = generation.timings
    return {
        "done": True,
        "done_reason": generation.finish_reason,
        "total_duration": _ns(timings.prefill_s + timings.decode_s),
        "load_duration": 0,
        "prompt_eval_count": timings.prefill_tokens,
        "prompt_eval_duration": _ns(timings.prefill_s),
        "eval_count": len(generation.tokens),
        "eval_duration": _ns(timings.decode_s),
    }


def _call(call: ToolCall) -> JSON:
    return {"id": call.id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}


def _logprob(sampled: Sampled, tokenizer: Tokenizer) -> JSON:
    top = [_named(one.token, one.logprob, tokenizer) for one in sampled.top_logprobs]
    return {**_named(sampled.token, sampled.logprob, tokenizer), "top_logprobs": top}


def _named(token: int, logprob: float | None, tokenizer: Tokenizer) -> JSON:
    piece = tokenizer.token_bytes(token)
    return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
