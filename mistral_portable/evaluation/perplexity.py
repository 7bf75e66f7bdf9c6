"""perplexity(): how surprised a model is by a text, counted as llama.cpp's `llama-perplexity` counts it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import Chunk
from mistral_portable.engine import Model
from mistral_portable.errors import InputError

__all__ = ["Perplexity", "perplexity"]

_ROWS = 64  # rows of logits that are made probabilities at a time


@dataclass(frozen=True)
class Perplexity:
    """What was measured. loss: nats per token, the mean over `tokens` tokens of `chunks` chunks of `context` tokens.

    loss_error: the standard error of that mean, as if tokens were independent.
    """

    loss: float
    loss_error: float
    tokens: int
    chunks: int
    context: int

    @property
    def value(self) -> float:
        """The perplexity, e^loss: 1 if every token was certain, the size of the vocabulary if it was guessed."""
        return exp(self.loss) if self.loss < 700 else inf

    @property
    def error(self) -> float:
        """The standard error of `value`."""
        return self.value * self.loss_error


def perplexity(
    model: Model,
    text: str | Sequence[int],
    *,
    context: int = 512,
    progress: Callable[[str, int, int], None] | None = None,
) -> Perplexity:
    """Cut a text into chunks of `context` tokens and score the second half of each.

    This is what `llama-perplexity` does, so that figures compare: tokens are those of the whole text; what does not
    fill a chunk is left out; the first token of each chunk gives way to the begin-of-sequence token; a token in the
    first half, which sees little, is not scored, and of the others each is scored on all of the chunk before it. A
    window cuts off what is farther away, as always. Example: 10 tokens t0..t9 and context 4 are the chunks
    [B t1 t2 t3] and [B t5 t6 t7], with the scores of t3 and of t7; t2, the first of the second half, is only read.

    text: or its token ids. progress: called as (what, tokens done, in total).

    Raises InputError for a context that is no even number from 4 to `model.max_context`, for fewer tokens than that,
    for ids outside the vocabulary, and if logits are not finite.
    """
    if not isinstance(context, int) or context < 4 or context % 2 or context > model.max_context:
        raise InputError(f"context={context!r} must be an even number from 4 to {model.max_context}")
    tokens = model.tokenizer.encode(text) if isinstance(text, str) else [int(token) for token in text]
    if outside := [token for token in tokens if not 0 <= token < model.config.vocab_size]:
        raise InputError(f"token id {outside[0]} is outside the vocabulary of {model.config.vocab_size}")
    begin = model.tokenizer.bos_id if model.has_tokenizer else None
    chunks = len(tokens) // context
    if not chunks:
        raise InputError(
            f"the text has {len(tokens)} tokens, less than a chunk of {context}: take more text, or a smaller context"
        )
    losses: list[NDArray[np.float64]] = []
    for number in range(chunks):
        chunk = tokens[number * context : (number + 1) * context]
        if begin is not None:
            chunk[0] = begin
        losses.append(_losses(model, chunk, context // 2))
        if progress:
            progress("perplexity", (number + 1) * context, chunks * context)
    every = np.concatenate(losses)
    error = sqrt(every.var() / (len(every) - 1)) if len(every) > 1 else 0.0
    return Perplexity(float(every.mean()), error, len(every), chunks, context)


def _losses(model: Model, chunk: Sequence[int], first: int) -> NDArray[np.float64]:
    """Of the tokens behind positions first .. len(chunk) - 2."""
    size, losses = model.manager.spec.max_chunk, []
    with model.lane() as lane:
        for start in range(0, len(chunk) - 1, size):
            some = chunk[start : min(start + size, len(chunk) - 1)]
            rows = range(max(first - start, 0), len(some))
            logits = model.step([Chunk(lane, some, rows)])
            for low in range(0, len(rows), _ROWS):
                part = logits[low : low + _ROWS].astype(np.float64)
                if not np.isfinite(part).all():
                    raise InputError("a logit is not finite: the weights are corrupt or the dtype overflowed")
                part -= part.max(1, keepdims=True)
                targets = [chunk[start + row + 1] for row in rows[low : low + _ROWS]]
                losses.append(np.log(np.exp(part).sum(1)) - part[np.arange(len(part)), targets])
    return np.concatenate(losses)
