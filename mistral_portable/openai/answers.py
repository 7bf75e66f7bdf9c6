"""Answers of OpenAI's API: `chat.completion` and `text_completion` objects, and the chunks of their streams.

Sources: https://platform.openai.com/docs/api-reference/chat, .../completions; `timings` as llama-server writes them:
https://github.com/ggml-org/llama.cpp/tree/master/tools/server#timings-and-context-usage.
"""

import itertools
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mistral_portable.answers import Content, Delta, ToolCall
from mistral_portable.api import WholeCalls
from mistral_portable.engine import Generation
from mistral_portable.openai.messages import assistant_message, call_fields, delta_fields, finish_reason
from mistral_portable.sampling import Sampled
from mistral_portable.tokenizer import Tokenizer

JSON = dict[str, Any]

__all__ = ["JSON", "ChatChunks", "TextChunks", "chat_completion", "text_completion", "timings", "usage"]


def chat_completion(generations: Sequence[Generation], model: str, tokenizer: Tokenizer) -> JSON:
    """The answers to one chat, as a JSON object."""
    choices = [
        {
            "index": index,
            "message": assistant_message(generation),
            "logprobs": None if generation.logprobs is None else _chat_logprobs(generation.logprobs, tokenizer, 0),
            "finish_reason": finish_reason(generation),
        }
        for index, generation in enumerate(generations)
    ]
    return _object("chat.completion", "chatcmpl", model, choices, usage(generations, len(generations)))


def text_completion(generations: Sequence[Generation], n: int, model: str, tokenizer: Tokenizer | None) -> JSON:
    """The continuations of one or more texts, `n` of each, as a JSON object."""
    choices = [
        {
            "index": index,
            "text": generation.text,
            "logprobs": None if generation.logprobs is None else _text_logprobs(generation.logprobs, tokenizer, 0),
            "finish_reason": generation.finish_reason,
        }
        for index, generation in enumerate(generations)
    ]
    return _object("text_completion", "cmpl", model, choices, usage(generations, n))


def usage(generations: Sequence[Generation], n: int) -> JSON:
    """The numbers of tokens of `n` answers to each prompt; a prompt counts once."""
    read = [generation.timings for generation in generations[::n]]
    asked, made = sum(some.prefill_tokens for some in read), sum(len(generation.tokens) for generation in generations)
    return {
        "prompt_tokens": asked,
        "completion_tokens": made,
        "total_tokens": asked + made,
        "prompt_tokens_details": {"cached_tokens": sum(some.cached_tokens for some in read)},
        **_drafts(generations),
    }


def _drafts(generations: Sequence[Generation]) -> JSON:
    """How many drafted tokens were right, and how many were not, if there were any."""
    drafted = sum(generation.timings.drafted_tokens for generation in generations)
    right = sum(generation.timings.accepted_tokens for generation in generations)
    details = {"accepted_prediction_tokens": right, "rejected_prediction_tokens": drafted - right}
    return {"completion_tokens_details": details} if drafted else {}


def timings(generations: Sequence[Generation]) -> JSON:
    """llama-server's `timings`: tokens found in the cache, read and made, and drafted if there were any, of all
    answers; ms of the one that took longest, from its request to the first token and from there to the last."""
    every = [generation.timings for generation in generations]
    cached = sum(some.cached_tokens for some in every)
    read = sum(some.prefill_tokens for some in every) - cached
    made = sum(len(generation.tokens) for generation in generations)
    read_s, made_s = max(some.prefill_s for some in every), max(some.decode_s for some in every)
    decoded = sum(some.decode_tokens for some in every)
    drafted = sum(some.drafted_tokens for some in every)
    drafts = {"draft_n": drafted, "draft_n_accepted": sum(some.accepted_tokens for some in every)} if drafted else {}
    return {
        "cache_n": cached,
        "prompt_n": read,
        "prompt_ms": read_s * 1000,
        "prompt_per_second": read / read_s if read_s else 0.0,
        "predicted_n": made,
        "predicted_ms": made_s * 1000,
        "predicted_per_second": decoded / made_s if made_s else 0.0,
        **drafts,
    }


class ChatChunks:
    """Writer of `chat.completion.chunk` objects, of one stream."""

    def __init__(self, model: str, tokenizer: Tokenizer, *, whole_calls: bool = False) -> None:
        """whole_calls: whether a tool call comes in one chunk, as Mistral's API writes it; else in OpenAI's pieces."""
        self._head = _head("chat.completion.chunk", "chatcmpl", model)
        self._tokenizer = tokenizer
        self._whole_calls = whole_calls
        self._calls: dict[int, _WholeCalls] = {}  # of each choice
        self._taken: dict[int, int] = {}  # tokens of each choice so far

    def first(self, index: int) -> JSON:
        """The chunk that begins a choice: its role."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def piece(self, index: int, text: str, sampled: Sequence[Sampled] | None) -> JSON:
        """A piece of a choice's content. sampled: its tokens, if log-probabilities are wanted."""
        return self._chunk(index, {"content": text}, self._logprobs(index, sampled), None)

    def pieces(self, index: int, deltas: Iterable[Delta], sampled: Sequence[Sampled] | None) -> list[JSON]:
        """Pieces of a choice: content, reasoning and tool calls. sampled: as for `piece`, with the first of them."""
        if self._whole_calls:
            every = self._calls.setdefault(index, _WholeCalls()).push(_joined(deltas))
        else:
            every = [fields for delta in _joined(deltas) if (fields := delta_fields(delta)) is not None]
        if not every:
            return [] if sampled is None else [self.piece(index, "", sampled)]
        logprobs = self._logprobs(index, sampled)
        first, *rest = every
        return [self._chunk(index, first, logprobs, None), *(self._chunk(index, fields, None, None) for fields in rest)]

    def last(self, index: int, finish_reason: str) -> JSON:
        """The chunk that ends a choice."""
        return self._chunk(index, {}, None, finish_reason)

    def usage(self, generations: Sequence[Generation]) -> JSON:
        """The chunk of the numbers of tokens, which has no choice."""
        return {**self._head, "choices": [], "usage": usage(generations, len(generations))}

    def _logprobs(self, index: int, sampled: Sequence[Sampled] | None) -> JSON | None:
        if sampled is None:
            return None
        before = self._taken.get(index, 0)
        self._taken[index] = before + len(sampled)
        return _chat_logprobs(sampled, self._tokenizer, before)

    def _chunk(self, index: int, delta: JSON, logprobs: JSON | None, finish_reason: str | None) -> JSON:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


class _WholeCalls:
    """The `delta`s of one choice, with each call in one piece."""

    def __init__(self) -> None:
        self._held = WholeCalls()
        self._count = itertools.count()

    def push(self, deltas: Iterable[Delta]) -> list[JSON]:
        found: list[JSON] = []
        for part in self._held.push(deltas):
            if isinstance(part, ToolCall):
                found.append({"tool_calls": [{"index": next(self._count), **call_fields(part)}]})
            elif (fields := delta_fields(part)) is not None:
                found.append(fields)
        return found


class TextChunks:
    """Writer of the chunks of a stream of `text_completion`s, which are objects of the same kind."""

    def __init__(self, model: str, n: int, tokenizer: Tokenizer | None) -> None:
        """n: choices of each prompt."""
        self._head = _head("text_completion", "cmpl", model)
        self._n = n
        self._tokenizer = tokenizer
        self._characters: dict[int, int] = {}  # of each choice's tokens so far

    def piece(self, index: int, text: str, sampled: Sequence[Sampled] | None) -> JSON:
        """A piece of a choice's text. sampled: its tokens, if log-probabilities are wanted."""
        logprobs = None
        if sampled is not None:
            offset = self._characters.get(index, 0)
            logprobs = _text_logprobs(sampled, self._tokenizer, offset)
            self._characters[index] = offset + sum(map(len, logprobs["tokens"]))
        return self._chunk(index, text, logprobs, None)

    def pieces(self, index: int, deltas: Iterable[Delta], sampled: Sequence[Sampled] | None) -> list[JSON]:
        """A piece of the deltas' content, if there is any, or tokens; in a list, as a chat's pieces are."""
        text = "".join(delta.text for delta in deltas if isinstance(delta, Content))
        return [self.piece(index, text, sampled)] if text or sampled is not None else []

    def last(self, index: int, finish_reason: str) -> JSON:
        """The chunk that ends a choice."""
        return self._chunk(index, "", None, finish_reason)

    def usage(self, generations: Sequence[Generation]) -> JSON:
        """The chunk of the numbers of tokens, which has no choice."""
        return {**self._head, "choices": [], "usage": usage(generations, self._n)}

    def _chunk(self, index: int, text: str, logprobs: JSON | None, finish_reason: str | None) -> JSON:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


def _joined(deltas: Iterable[Delta]) -> Iterator[Delta]:
    """The deltas, with neighbouring pieces of content as one."""
    for kind, group in itertools.groupby(deltas, type):
        if kind is Content:
            yield Content("".join(delta.text for delta in group if isinstance(delta, Content)))
        else:
            yield from group


def _object(kind: str, prefix: str, model: str, choices: list[JSON], counts: JSON) -> JSON:
    return {**_head(kind, prefix, model), "choices": choices, "usage": counts}


def _head(kind: str, prefix: str, model: str) -> JSON:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _chat_logprobs(sampled: Sequence[Sampled], tokenizer: Tokenizer, before: int) -> JSON:
    """before: tokens of the answer that came earlier. The first one has no space before it, as its text has none."""
    content = []
    for number, one in enumerate(sampled, start=before):
        top = [_named(some.token, some.logprob, tokenizer, number == 0) for some in one.top_logprobs]
        content.append({**_named(one.token, one.logprob, tokenizer, number == 0), "top_logprobs": top})
    return {"content": content, "refusal": None}


def _named(token: int, logprob: float | None, tokenizer: Tokenizer, begins: bool) -> JSON:
    piece = tokenizer.token_bytes(token, begins_text=begins)
    return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}


def _text_logprobs(sampled: Sequence[Sampled], tokenizer: Tokenizer | None, offset: int) -> JSON:
    """The older format: lists side by side. Tokens without a tokenizer are "token_id:5", as vLLM writes them.

    offset: characters of the choice's tokens that came earlier.
    """

    def name(token: int) -> str:
        return f"token_id:{token}" if tokenizer is None else tokenizer.token_bytes(token).decode(errors="replace")

    names = [name(one.token) for one in sampled]
    offsets = list(itertools.accumulate(map(len, names), initial=offset))[:-1]
    return {
        "tokens": names,
        "token_logprobs": [one.logprob for one in sampled],
        "top_logprobs": [{name(top.token): top.logprob for top in one.top_logprobs} for one in sampled],
        "text_offset": offsets,
    }
