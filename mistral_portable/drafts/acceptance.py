"""Acceptance: how likely drafted tokens are to be the right ones, learned from those that were."""

__all__ = ["Acceptance"]

_FIRST = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.8)  # behind 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 to 31, and more tokens
_WEIGHT = 1 / 12  # of the newest token


class Acceptance:
    """A moving average for each size of match: one of 1 token says little, one of 20 is seldom wrong.

    A draft's token behind a match of m tokens is one behind m + 1 if it is right, and so on.
    """

    def __init__(self) -> None:
        self._likely = list(_FIRST)

    def of(self, match: int) -> float:
        """The chance of a token behind a match of so many."""
        return self._likely[min(match.bit_length(), len(_FIRST) - 1)]

    def observe(self, match: int, right: bool) -> None:
        """Note whether a token behind a match of so many was the right one."""
        kind = min(match.bit_length(), len(_FIRST) - 1)
        self._likely[kind] += _WEIGHT * (right - self._likely[kind])
