"""Acceptance: how likely drafted tokens are to be the right ones, learned from those that were."""

from collections.abc import Sequence

__all__ = ["Acceptance"]


class Acceptance:
    """A moving average for each kind of drafted token: one that is likely, say, and one that is not.

    >>> learned = Acceptance([0.5, 0.8])
    >>> learned.observe(0, True)
    >>> round(learned.of(0), 3), learned.of(1)
    (0.542, 0.8)
    """

    def __init__(self, first: Sequence[float], weight: float = 1 / 12) -> None:
        """first: for each kind the chance that counts until more is known. weight: of the newest token."""
        self._likely = list(first)
        self._weight = weight

    @property
    def chances(self) -> Sequence[float]:
        """The chance of each kind."""
        return tuple(self._likely)

    def of(self, kind: int) -> float:
        """The chance of a token of this kind, if all before it are right."""
        return self._likely[kind]

    def observe(self, kind: int, right: bool) -> None:
        """Note whether a token of this kind was the right one."""
        self._likely[kind] += self._weight * (right - self._likely[kind])
