"""LogitsProcessor: a caller's own rule for the next token, between the penalties and the temperature."""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mistral_portable.errors import InputError
from mistral_portable.sampling.processors import Row

__all__ = ["LogitsProcessor", "processed"]


class LogitsProcessor(Protocol):
    """A function of the text so far and the logits of its next token, called once for each token of an answer.

    Several answers may call it at the same time, in any thread: a result that follows from the arguments alone gives
    the same text in any batch, with and without drafts. What it raises ends this answer alone, as that error. It must
    not ask the model of its answer for anything: that one waits for it.
    """

    def __call__(self, tokens: Sequence[int], logits: Row, /) -> Row:
        """Return the logits to choose from, float32 [vocab]; -inf bans a token.

        tokens: ids of prompt and answer so far, not to be changed; the answer alone, if the prompt was embeddings.
        logits: float32 [vocab], behind bias and penalties. They may be changed in place and returned; the memory is
        used again afterwards.
        """


def processed(row: Row, tokens: Sequence[int], rules: Sequence[LogitsProcessor]) -> np.intp:
    """Apply the rules in turn to a row, in place; return where its first maximum is.

    Raises InputError for a result that is no row of logits, and what a rule raises.

    >>> row = np.float32([3, 1, 2])
    >>> int(processed(row, [2], [lambda tokens, logits: -logits, lambda tokens, logits: logits + tokens[-1]])), row
    (1, array([-1.,  1.,  0.], dtype=float32))
    """
    best = row.argmax()
    for number, rule in enumerate(rules):
        made: object = rule(tokens, row)
        if not isinstance(made, np.ndarray) or made.dtype != np.float32 or made.shape != row.shape:
            raise _wrong(number, rule, f"has returned {_kind(made)}: return float32 [{row.size}]")
        if made is not row:
            row[:] = made
        best = row.argmax()  # NaN counts as the maximum, so this one entry tells whether the row is sound
        if not math.isfinite(row[best]):
            banned = row[best] == -math.inf
            what = "left no token to sample" if banned else f"made the logit of token {best} {row[best]}"
            raise _wrong(number, rule, f"has {what}: return finite logits, -inf for tokens that it bans")
    return best


def _wrong(number: int, rule: LogitsProcessor, fault: str) -> InputError:
    name = getattr(rule, "__name__", type(rule).__name__)
    return InputError(f"logits_processors[{number}] ({name}) {fault}")


def _kind(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
