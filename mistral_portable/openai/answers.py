"""Answers of OpenAI's API: `chat.completion` and `text_completion` objects."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from mistral_portable.engine import Generation
from mistral_portable.openai.messages import assistant_message, finish_reason
from mistral_portable.sampling import Sampled
from mistral_portable.tokenizer import Tokenizer

JSON = dict[str, Any]

__all__ = ["JSON", "chat_completion", "text_completion", "usage"]


def chat_completion(generations: Sequence[Generation], model: str, tokenizer: Tokenizer) -> JSON:
    """The answers to one chat, as a JSON object."""
    choices = [
        {
            "index": index,
            "message": assistant_message(generation),
            "logprobs": None
            if generation.logprobs is None
            else {"content": [_chat_logprob(one, tokenizer) for one in generation.logprobs], "refusal": None},
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
            "logprobs": None if generation.logprobs is None else _text_logprobs(generation.logprobs, tokenizer),
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
    }


def _object(kind: str, prefix: str, model: str, choices: list[dict[str, Any]], counts: JSON) -> JSON:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": counts,
    }


def _chat_logprob(sampled: Sampled, tokenizer: Tokenizer) -> dict[str, Any]:
    top = [_named(one.token, one.logprob, tokenizer) for one in sampled.top_logprobs]
    return {**_named(sampled.token, sampled.logprob, tokenizer), "top_logprobs": top}


def _named(token: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    piece = tokenizer.token_bytes(token)
    return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}


def _text_logprobs(sampled: Sequence[Sampled], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The older format: lists side by side. Tokens without a tokenizer are "token_id:5", as vLLM writes them."""

    def name(token: int) -> str:
        return f"token_id:{token}" if tokenizer is None else tokenizer.token_bytes(token).decode(errors="replace")

    names = [name(one.token) for one in sampled]
    offsets = [sum(map(len, names[:index])) for index in range(len(names))]
    return {
        "tokens": names,
        "token_logprobs": [one.logprob for one in sampled],
        "top_logprobs": [{name(top.token): top.logprob for top in one.top_logprobs} for one in sampled],
        "text_offset": offsets,
    }
