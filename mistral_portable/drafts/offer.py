"""Offer: what a text may go on with, and what there is to be learned from what it goes on with."""

from collections.abc import Sequence
from typing import NamedTuple

from mistral_portable.drafts.acceptance import Acceptance

__all__ = ["NOTHING", "Offer"]


class Offer(NamedTuple):
    """Tokens, and the kind of each, by which its chance is learned (`Acceptance`)."""

    tokens: Sequence[int]
    kinds: Sequence[int]

    def chances(self, learned: Acceptance) -> list[float]:
        """How likely each token is, if those before it are right."""
        return [learned.of(kind) for kind in self.kinds]

    def judge(self, came: Sequence[int], learned: Acceptance) -> None:
        """Learn from the tokens that came, up to the first one that is another. Nothing need have been tried.

        >>> learned = Acceptance([0.0, 1.0])
        >>> Offer([5, 6, 7], [0, 1, 1]).judge([5, 9, 7], learned)    # 5 was right, 6 was not, 7 says nothing
        >>> learned.of(0) > 0, learned.of(1) < 1
        (True, True)
        """
        for token, kind, new in zip(self.tokens, self.kinds, came, strict=False):
            learned.observe(kind, token == new)
            if token != new:
                return


NOTHING = Offer((), ())
"""The offer without tokens."""
