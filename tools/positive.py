"""Counts on the command lines of the tools."""

from argparse import ArgumentTypeError

__all__ = ["positive"]


def positive(text: str) -> int:
    """Parse an integer of at least 1, for `add_argument(type=positive)`, which names the option of any other text.

    >>> positive("3")
    3
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r:.60} is not an integer >= 1")
    return number
