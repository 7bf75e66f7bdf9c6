"""State: where one answer stands in a grammar."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["State", "contained"]


@contextmanager
def contained(name: str) -> Iterator[None]:
    """Turn whatever llguidance raises in the block into an InputError about `name`: its panics are no Exceptions."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise InputError(f"{name}: {_reason(error)}; change it, or make it simpler") from error


class State:
    """The constraint of one answer (`sampling.Constraint`), over llguidance's matcher.

    A matcher that fails allows the end token and nothing else. So its errors are looked for after each call, and the
    end tokens are allowed by its word that the text is complete, not by its mask.
    """

    def __init__(self, name: str, matcher: "LLMatcher", ends: Collection[int], bits: NDArray[np.uint8]) -> None:
        """Made by `first` and `copy`. bits: which ids may come next, a bit each, the lowest first; never changed."""
        self._name = name
        self._matcher = matcher
        self._ends = ends
        self._bits = bits

    @classmethod
    def first(cls, name: str, matcher: "LLMatcher", ends: Collection[int], *, unfit: Sequence[int] = ()) -> Self:
        """Return the state before the first token.

        name: of the grammar, for errors. ends: ids that end a text. unfit: ids that may not come first. Raises
        InputError if the grammar is bad, too complex, or allows no text.
        """
        state = cls(name, matcher, ends, np.zeros(0, np.uint8))
        state._look(unfit)
        return state

    def copy(self) -> Self:
        """Return another one that stands in the same place and goes on alone."""
        with contained(self._name):
            return type(self)(self._name, self._matcher.deep_copy(), self._ends, self._bits)

    def allowed(self) -> NDArray[np.bool_]:
        return np.unpackbits(self._bits, bitorder="little").view(np.bool_)

    @property
    def forced(self) -> int | None:
        places = self._bits.nonzero()[0]
        if len(places) != 1:
            return None
        bits = int(self._bits[places[0]])
        return None if bits & (bits - 1) else 8 * int(places[0]) + bits.bit_length() - 1

    def accept(self, token: int) -> None:
        if not (0 <= token < 8 * len(self._bits) and self._bits[token // 8] >> token % 8 & 1):
            raise InputError(f"{self._name}: token {token} is not allowed here: choose one of `allowed`")
        if token in self._ends:
            self._bits = np.zeros_like(self._bits)
            return
        with contained(self._name):
            self._matcher.consume_token(token)
        self._look()

    def _look(self, unfit: Sequence[int] = ()) -> None:
        """Find which ids may come next."""
        with contained(self._name):
            self._require_sound()
            bits = np.array(np.frombuffer(self._matcher.compute_bitmask(), np.uint8))
            self._require_sound()
            complete = self._matcher.is_accepting()
        known = 8 * len(bits)
        for token in (*self._ends, *unfit):
            if token < known:
                bits[token // 8] &= ~np.uint8(1 << token % 8)
        for token in self._ends:
            if complete and token < known:
                bits[token // 8] |= np.uint8(1 << token % 8)
        if not bits.any():
            raise InputError(f"{self._name}: no token of the model continues this text; make it allow one")
        self._bits = bits

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"{self._name}: {_reason(self._matcher.get_error())}; change it, or make it simpler")


def _reason(error: object) -> str:
    """A message of llguidance's on one line, without its state and the backtrace, which come last."""
    text = re.split(r"<(?:state|backtrace|non-verbose)", str(error))[0]
    return " ".join(text.split())[:300] or type(error).__name__
