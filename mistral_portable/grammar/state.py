"""State: where one answer stands in a grammar."""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError

if TYPE_CHECKING:
    from llguidance import LLMatcher

__all__ = ["Otherwise", "State", "contained"]


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

    def __init__(
        self,
        name: str,
        matcher: "LLMatcher",
        ends: Collection[int],
        bits: NDArray[np.uint8],
        otherwise: "Otherwise | None" = None,
    ) -> None:
        """Made by `first` and `copy`. bits: which ids may come next, a bit each, the lowest first; never changed."""
        self._name = name
        self._otherwise = otherwise
        self._matcher = matcher
        self._ends = ends
        self._bits = bits

    @classmethod
    def first(
        cls, name: str, matcher: "LLMatcher", ends: Collection[int], *, otherwise: "Otherwise | None" = None
    ) -> Self:
        """Return the state before the first token.

        name: of the grammar, for errors. ends: ids that end a text. Raises InputError if the grammar is bad, too
        complex, or allows no text.
        """
        state = cls(name, matcher, ends, np.zeros(0, np.uint8), otherwise)
        state._look()
        return state

    def copy(self) -> Self:
        """Return another one that stands in the same place and goes on alone."""
        with contained(self._name):
            return type(self)(self._name, self._matcher.deep_copy(), self._ends, self._bits, self._otherwise)

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
        if not self._allows(token):
            raise InputError(f"{self._name}: token {token} is not allowed here: choose one of `allowed`")
        if token in self._ends:
            self._bits = np.zeros_like(self._bits)
            return
        otherwise, self._otherwise = self._otherwise, None
        with contained(self._name):
            if otherwise is not None and token in otherwise.tokens:
                self._matcher = otherwise.state._matcher.deep_copy()
            self._matcher.consume_token(token)
        self._look()

    def _look(self) -> None:
        """Find which ids may come next."""
        with contained(self._name):
            self._require_sound()
            bits = np.array(np.frombuffer(self._matcher.compute_bitmask(), np.uint8))
            self._require_sound()
            complete = self._matcher.is_accepting()
        _set(bits, self._ends, complete)
        if self._otherwise is not None:
            _set(bits, self._otherwise.tokens, False)
            _set(bits, [token for token in self._otherwise.tokens if self._otherwise.state._allows(token)], True)
        if not bits.any():
            raise InputError(f"{self._name}: no token of the model continues this text; make it allow one")
        self._bits = bits

    def _allows(self, token: int) -> bool:
        return 0 <= token < 8 * len(self._bits) and bool(self._bits[token // 8] >> token % 8 & 1)

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"{self._name}: {_reason(self._matcher.get_error())}; change it, or make it simpler")


@dataclass(frozen=True)
class Otherwise:
    """Tokens that come first in another state's way: if that allows one, the text goes on from there."""

    state: State
    tokens: Collection[int]


def _set(bits: NDArray[np.uint8], tokens: Iterable[int], value: bool) -> None:
    """Set the bits of those tokens for which there is one."""
    for token in tokens:
        if token < 8 * len(bits):
            bit = np.uint8(1 << token % 8)
            bits[token // 8] = bits[token // 8] | bit if value else bits[token // 8] & ~bit


def _reason(error: object) -> str:
    """A message of llguidance's on one line, without its state and the backtrace, which come last."""
    text = re.split(r"<(?:state|backtrace|non-verbose)", str(error))[0]
    return " ".join(text.split())[:300] or type(error).__name__
