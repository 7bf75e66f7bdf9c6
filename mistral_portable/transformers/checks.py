"""Checks of the arguments of `generate`: each returns the value, or raises InputError, in one line that names it."""

import math
from collections.abc import Sized
from typing import Any

import numpy as np

from mistral_portable.errors import InputError
from mistral_portable.transformers.arrays import integers

__all__ = ["is_given", "number", "positive", "shown", "token_ids", "whole_number"]


def is_given(value: Any) -> bool:
    """Whether a value asks for something: it is not None, and not empty.

    >>> is_given(0), is_given(None), is_given([])
    (True, False, False)
    """
    has_length = (
        isinstance(value, Sized) and getattr(value, "ndim", None) != 0
    )  # one number of an array library has none
    return value is not None and not (has_length and len(value) == 0)


def shown(value: Any) -> str:
    """The value as the beginning of one line.

    >>> shown(np.zeros((2, 2)))
    'array([[0., 0.], [0., 0.]])'
    """
    return " ".join(repr(value).split())[:60]


def whole_number(name: str, value: Any) -> int:
    """The value as an integer from 0 on; 0 for None."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{name}={shown(value)} must be an integer >= 0")
    return int(value)


def positive(name: str, value: Any) -> int:
    """The value as an integer from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name}={shown(value)} must be an integer from 1 on")
    return int(value)


def number(name: str, value: Any, above: float = -math.inf) -> float:
    """The value as a finite number that is greater than `above`."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not above < value < math.inf:
        raise InputError(f"{name}={shown(value)} must be a number" + (f" > {above:g}" if above > -math.inf else ""))
    return float(value)


def token_ids(name: str, value: Any, vocab_size: int) -> list[int]:
    """One id or several as a list; they must be in the vocabulary."""
    listed: list[int] = integers(name, value).ravel().tolist() if is_given(value) else []
    if outside := [id for id in listed if not 0 <= id < vocab_size]:
        raise InputError(f"{name}: token id {outside[0]} must be in 0..{vocab_size - 1} (vocabulary)")
    return listed
