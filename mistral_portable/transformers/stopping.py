"""Criteria that end answers beside end tokens and lengths: the caller's own, strings and time."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.transformers.arrays import Library, as_numpy
from mistral_portable.transformers.checks import shown

__all__ = ["Criterion", "StoppingCriteria", "StoppingCriteriaList", "called", "stop_strings", "time_limit"]

Criterion = Callable[[NDArray[np.int64], Any], NDArray[np.bool_]]
"""Takes ids of prompts and answers [B, T], and scores or None; says for each row whether its last token ends it [B]."""

_SHORTEST = 4  # tokens of a character that is spelled as bytes
_SPACE = "\u2581"  # as sentencepiece's vocabularies spell a space


class StoppingCriteria:
    """Base of criteria. `generate` takes any function of these two arguments."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return for each row of input_ids [B, T] whether it ends here: booleans [B], or one for all.

        scores: what `output_scores` asks for, so far; None without it.
        """
        raise NotImplementedError


class StoppingCriteriaList(list[Any]):
    """Criteria, of which any ends a row."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return for each row of input_ids [B, T] whether one of the criteria ends it: booleans [B]."""
        ends: Any = np.zeros(len(input_ids), np.bool_)
        for number, criterion in enumerate(self):
            said = criterion(input_ids, scores, **kwargs)
            ends = said if number == 0 else ends | said
        return ends


def called(criteria: Any, library: Library) -> list[Criterion]:
    """The caller's criteria, one or a list, which take and return arrays of a library."""
    listed = criteria if isinstance(criteria, list | tuple) else [criteria]
    for one in listed:
        if not callable(one):
            raise InputError(f"stopping_criteria={shown(criteria)}: pass functions of input_ids and scores")

    def criterion(one: Any) -> Criterion:
        def ends(ids: NDArray[np.int64], scores: Any) -> NDArray[np.bool_]:
            said = as_numpy("stopping_criteria", one(library.make(ids), scores)).astype(np.bool_)
            if said.size not in (1, len(ids)):
                raise InputError(f"stopping_criteria has returned {list(said.shape)}: return a bool for each row")
            return np.broadcast_to(said.ravel(), (len(ids),))

        return ends

    return [criterion(one) for one in listed]


def time_limit(seconds: Any) -> Criterion:
    """A criterion that ends all rows so many seconds from now. Raises InputError if that is no number from 0 on."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise InputError(f"max_time={shown(seconds)} must be seconds, a number >= 0")
    end = time.monotonic() + seconds
    return lambda ids, _: np.full(len(ids), time.monotonic() > end)


def stop_strings(strings: Any, tokenizer: Any) -> Criterion:
    """A criterion that ends a row by the token that completes one of the strings, wherever in the text of that token.

    The strings may begin in the prompt, and special tokens count as they are decoded. Raises InputError without a
    tokenizer, and for anything but strings.
    """
    stops = [strings] if isinstance(strings, str) else strings
    if not isinstance(stops, Sequence) or not stops or not all(isinstance(stop, str) and stop for stop in stops):
        raise InputError(f"stop_strings={shown(strings)} must be a string or a list of strings")
    if not callable(getattr(tokenizer, "decode", None)):
        raise InputError("stop_strings are found in text: pass the model's tokenizer= with them")
    wanted = [stop.replace(_SPACE, " ") for stop in stops]
    longest = max(map(len, wanted))

    def decoded(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens)).replace(_SPACE, " ") if tokens else ""

    def ends(tokens: list[int]) -> bool:
        tail = tokens[-(longest + 1) * _SHORTEST :]  # one more than is needed: decoding may drop the first one's space
        text, before = decoded(tail), decoded(tail[:-1]).rstrip("\ufffd")
        return any(text.find(stop, max(0, len(before) - len(stop) + 1)) >= 0 for stop in wanted)

    return lambda ids, _: np.array([ends(row.tolist()) for row in ids], np.bool_)
