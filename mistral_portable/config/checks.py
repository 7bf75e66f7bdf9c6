"""Checks of single values from untrusted files. Each raises a ConfigError of one line that names the field."""

import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mistral_portable.errors import ConfigError

__all__ = ["LARGEST_INTEGER", "inside", "integer", "real", "show"]

LARGEST_INTEGER = 2**31 - 1
"""Far above any model's sizes; keeps a hostile file from causing huge allocations before a tensor is seen."""

_LARGEST_REAL = sys.float_info.max  # refuses NaN, infinity and integers that no float can hold


def integer(name: str, value: object, minimum: int) -> int:
    """The value. Raises ConfigError unless it is an int, and no bool, from `minimum` to LARGEST_INTEGER."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= LARGEST_INTEGER:
        raise ConfigError(f"{name}={show(value)} must be an integer from {minimum} to {LARGEST_INTEGER}")
    return value


def real(name: str, value: object) -> float:
    """The value as a float. Raises ConfigError unless it is a finite int or float, and no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST_REAL <= value <= _LARGEST_REAL:
        raise ConfigError(f"{name}={show(value)} must be a finite number")
    return float(value)


def show(value: object) -> str:
    """A repr that is short for every value: `[1, 2, 3, 4, 5, 6, ...]`."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "(a huge integer)"


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Put the name of the enclosing key in front of every ConfigError: "yarn: factor=0.5 must be at least 1"."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
