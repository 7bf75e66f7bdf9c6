"""perplexity(): the perplexity of a model on a text, computed like llama.cpp's `llama-perplexity`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, sqrt

import numpy as np
from numpy.typing import NDArray

from mistral_portable.engine import Model
from mistral_portable.errors import InputError, NumericsError

__all__ = ["Perplexity", "perplexity"]

_ROWS = 64  # rows of logits converted to float64 probabilities at a time


@dataclass(frozen=True)
class Perplexity:
    """The result of `perplexity`.

    loss: mean negative log-likelihood in nats per scored token. loss_error: the standard error of that mean, as if
    tokens were independent. tokens: number of scored tokens. chunks: number of chunks. context: tokens per chunk.
    """

    loss: float
    loss_error: float
    tokens: int
    chunks: int
    context: int

    @property
    def value(self) -> float:
        """The perplexity, e^loss: 1 if every token was predicted with certainty, vocab_size for uniform predictions."""
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

    The rules are those of `llama-perplexity`, so that figures compare: the whole text is tokenized at once; tokens that
    do not fill a chunk are left out; the begin-of-sequence token replaces the first token of each chunk; tokens in the
    first half, which have little context, are not scored; the others are scored given all tokens of the chunk before
    them, or those within the attention window. Example: 10 tokens t0..t9 and context 4 give the chunks [B t1 t2 t3] and
    [B t5 t6 t7], in which t3 and t7 are scored; t2, the first token of the second half, is read and not scored.

    text: a text, or its token ids. progress: called as ("perplexity", tokens done, in total).

    Raises InputError if the context is no even number from 4 to `model.max_context`, if the text has fewer tokens than
    the context, or for ids outside the vocabulary; NumericsError if logits are not finite; TokenizerError for a text if
    the model has no tokenizer; and the errors of `Model.step`.
    """
    if not isinstance(model, Model):
        raise InputError(f"model={model!r:.40} must be a loaded one: load(...)")
    if not isinstance(text, str | Sequence | np.ndarray):
        raise InputError(f"text={text!r:.40} must be a text, or a list of token ids")
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
    """Negative log-likelihoods, float64, of the tokens at the positions first + 1 .. len(chunk) - 1."""
    targets, losses = chunk[first + 1 :], []
    for logits in model.logits_parts(chunk[:-1], first=first):
        for low in range(0, len(logits), _ROWS):
            part = logits[low : low + _ROWS].astype(np.float64)
            if not np.isfinite(part).all():
                raise NumericsError("a logit is not finite: the weights are corrupt or the dtype overflowed")
            part -= part.max(1, keepdims=True)
            here, targets = targets[: len(part)], targets[len(part) :]
            losses.append(np.log(np.exp(part).sum(1)) - part[np.arange(len(part)), here])
    return np.concatenate(losses)
