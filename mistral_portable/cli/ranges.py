"""Ranges of numbers on the command line, in the same words in the help and in errors."""

from typing import Any

import typer

__all__ = ["Range", "with_range"]


class Range:
    """A parser for typer: an integer, or with `real` a number, within two limits.

    >>> str(Range(1)), str(Range(0, 65535)), Range(1)("3")
    ('an integer >= 1', 'an integer in [0, 65535]', 3)
    """

    def __init__(self, low: int, high: int | None = None, *, real: bool = False) -> None:
        self._low, self._high = low, high
        self._kind: type[int | float] = float if real else int

    def __call__(self, text: str | int | float) -> int | float:
        """Return the number; a default is given as it is. Raises typer.BadParameter."""
        try:
            value = self._kind(text)
        except ValueError:
            value = self._low - 1
        if not (self._low <= value and (self._high is None or value <= self._high)):  # false for NaN
            raise typer.BadParameter(f"{text!r:.60} is not {self}")
        return value

    def __str__(self) -> str:
        limits = f">= {self._low}" if self._high is None else f"in [{self._low}, {self._high}]"
        return f"{'a number' if self._kind is float else 'an integer'} {limits}"


def with_range(
    help: str, low: int | None = None, high: int | None = None, *, real: bool = False, **settings: Any
) -> dict[str, Any]:
    """Arguments of `typer.Option`: the help with the range, and the parser. Without limits the settings as they are."""
    if low is None:
        return {"help": help, **settings}
    range = Range(low, high, real=real)
    return {"help": f"{help.rstrip('.')}; {range}.", "parser": range, **settings}
