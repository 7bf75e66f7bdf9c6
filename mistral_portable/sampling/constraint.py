"""Grammar and Constraint: a rule that an answer's tokens keep, and where one answer stands in it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constraint", "Grammar"]


class Constraint(Protocol):
    """The rule's word on the next token of one answer.

    An end token among the allowed ones says that the text may end here; as the forced one, that it must. All methods
    raise InputError where the rule cannot say what is allowed: nothing is allowed then.
    """

    def allowed(self) -> NDArray[np.bool_]:
        """Return for each token id whether it may come next, bool [n]; ids from n on may not."""

    @property
    def forced(self) -> int | None:
        """The one id that may come next; None where there is a choice, or after the end."""

    def accept(self, token: int) -> None:
        """Go on behind a token, which must be an allowed one."""

    def copy(self) -> "Constraint":
        """Return another one that stands in the same place and goes on alone."""


class Grammar(Protocol):
    """A rule for any number of answers, made once: each has a Constraint of its own."""

    def begin(self, prompt_tokens: Sequence[int]) -> Constraint:
        """Return the constraint of an answer to this prompt, before its first token."""
