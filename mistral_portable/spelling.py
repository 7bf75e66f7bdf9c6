"""Names that are none: the nearest one is said, for arguments as for options."""

from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

__all__ = ["checks_names", "nearest", "require_names"]

P = ParamSpec("P")
R = TypeVar("R")


def nearest(name: str, known: Collection[str]) -> str | None:
    """The name that is probably meant: one that begins so, or the most similar one; None: no name is.

    >>> nearest("temprature", ["top_k", "temperature"]), nearest("x", ["top_k"])
    ('temperature', None)
    """
    close = [own for own in known if own.startswith(name)] or get_close_matches(name, known, n=1)
    return close[0] if close else None


def require_names(function: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise TypeError, as Python does, for an argument that a function does not have, and say the nearest."""
    for name in given:
        if name not in known:
            meant = nearest(name, known)
            raise TypeError(f"{function}() has no argument {name!r}" + (f": is it {meant!r}?" if meant else ""))


def checks_names(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function say the nearest name of its own for an argument that it does not have."""
    known = tuple(signature(function).parameters)

    @wraps(function)
    def checked(*arguments: P.args, **named: P.kwargs) -> R:
        require_names(function.__name__, named, known)
        return function(*arguments, **named)

    return checked
