"""Acceptance: how likely drafted tokens are to be the right ones, learned from those that were."""

from collections.abc import Sequence

__all__ = ["Acceptance"]

_WEIGHT = 1 / 12  # of the newest token


class Acceptance:
    """A moving average for each kind of drafted token: one that is likely, say, and one that is not.

    >>> learned = Acceptance([0.5, 0.8])
    >>> learned.observe(0, True)
    >>> round(learned.of(0), 3), learned.of(1)
    (0.542, 0.8)
    """

    def __init__(self, first: Sequence[float]) -> None:
        """first: for each kind the chance that counts until more is known."""
        self._likely = list(first)

    def of(self, kind: int) -> float:
        """The chance of a token of this kind, if all before it are right."""
        return self._likely[kind]

    def observe(self, kind: int, right: bool) -> None:
        """Note whether a token of this kind was the right one."""
        self._likely[kind] += _WEIGHT * (right - self._likely[kind])
