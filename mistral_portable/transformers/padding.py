"""Padding and truncation: resolves the arguments of a tokenizer's call to lengths, and cuts and fills rows."""

import operator
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from mistral_portable.errors import InputError

__all__ = [
    "Lengths",
    "PaddingStrategy",
    "TruncationStrategy",
    "checked_integer",
    "resolve_lengths",
    "to_strategy",
    "truncate",
]

S = TypeVar("S", bound=StrEnum)

UNLIMITED = int(1e20)  # a greater model_max_length means that there is no limit


class PaddingStrategy(StrEnum):
    """The values of a call's `padding`."""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TruncationStrategy(StrEnum):
    """The values of a call's `truncation`; those for pairs of texts are refused."""

    LONGEST_FIRST = "longest_first"
    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    DO_NOT_TRUNCATE = "do_not_truncate"


@dataclass(frozen=True)
class Lengths:
    """Resolved arguments for padding and truncation.

    truncates: whether rows longer than `max_length` are cut. max_length: tokens; None: no limit. multiple: padded
    lengths are a multiple of it. side: where padding goes, "left" or "right".
    """

    padding: PaddingStrategy
    truncates: bool
    max_length: int | None
    multiple: int
    side: str

    def padded(self, longest: int) -> int:
        """The length to which the rows of a batch are padded, if its longest row has `longest` tokens; 0: no padding.

        >>> Lengths(PaddingStrategy.LONGEST, False, None, 8, "left").padded(13)
        16
        """
        if self.padding is PaddingStrategy.DO_NOT_PAD:
            return 0
        length = self.max_length if self.padding is PaddingStrategy.MAX_LENGTH and self.max_length else longest
        return -(-length // self.multiple) * self.multiple

    def fill(self, row: list[Any], length: int, filler: int) -> list[Any]:
        """The row padded with `filler` to `length`; unchanged if it is longer."""
        fillers = [filler] * (length - len(row))
        return fillers + row if self.side == "left" else row + fillers


def resolve_lengths(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    multiple: int | None,
    side: str,
    model_max_length: int,
    verbose: bool,
) -> Lengths:
    """Resolve the arguments by transformers' rules: `max_length` alone truncates; padding=True is "longest",
    truncation=True is "longest_first".

    A strategy that needs a limit takes `model_max_length`; if that is unlimited, it has no effect, with a warning.
    Raises InputError for an unknown strategy, length or side, and if `max_length` is not a multiple of `multiple`.
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = True
    pads = to_strategy("padding", PaddingStrategy, padding)
    cuts = to_strategy("truncation", TruncationStrategy, False if truncation is None else truncation)
    if cuts in (TruncationStrategy.ONLY_FIRST, TruncationStrategy.ONLY_SECOND):
        raise InputError(f"truncation={cuts.value!r} is for pairs of texts, which are not supported; pass True")
    if side not in ("left", "right"):
        raise InputError(f'padding_side={side!r} is neither "left" nor "right"')
    max_length = None if max_length is None else checked_integer("max_length", max_length)
    multiple = 1 if multiple is None else checked_integer("pad_to_multiple_of", multiple)
    truncates = cuts is not TruncationStrategy.DO_NOT_TRUNCATE

    if padding is True and max_length is not None and not truncates and verbose:
        warnings.warn(
            f'padding=True takes no notice of max_length={max_length}; pass padding="max_length", or truncation=True',
            stacklevel=3,
        )
    if max_length is None and (truncates or pads is PaddingStrategy.MAX_LENGTH):
        if model_max_length <= UNLIMITED:
            max_length = model_max_length
        else:
            if verbose:
                what = f"truncation={truncation!r}" if truncates else f"padding={padding!r}"
                warnings.warn(f"{what} does nothing: the model has no largest length; pass max_length", stacklevel=3)
            truncates = False
            pads = PaddingStrategy.DO_NOT_PAD if pads is PaddingStrategy.MAX_LENGTH else pads
    if truncates and pads is not PaddingStrategy.DO_NOT_PAD and max_length and max_length % multiple:
        raise InputError(f"max_length={max_length} is no multiple of pad_to_multiple_of={multiple}; make it one")
    return Lengths(pads, truncates, max_length, multiple, side)


def to_strategy(name: str, kind: type[S], value: Any) -> S:
    """The strategy of this value; True is the first of its kind, False the last. Raises InputError for other values."""
    if isinstance(value, bool):
        return list(kind)[0 if value else -1]
    try:
        return kind(getattr(value, "value", value))  # transformers' enumerations are taken by their values
    except ValueError:
        raise InputError(f"{name}={value!r} is no strategy; there are True, False, {', '.join(kind)}") from None


def checked_integer(name: str, value: int, least: int = 1) -> int:
    """The value as an int. Raises InputError, naming `name`, unless it is an integer from `least` on."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"{name}={value!r} must be an integer from {least} on")
    return number


def truncate(ids: list[int], remove: int, side: str, stride: int) -> tuple[list[int], list[int]]:
    """Cut `remove` ids at a side. Returns the ids that are left, and those cut with `stride` neighbours more.

    >>> truncate([1, 2, 3, 4, 5], 2, "right", 1)
    ([1, 2, 3], [3, 4, 5])
    """
    window = min(len(ids), remove + stride)
    if side == "left":
        return ids[remove:], ids[:window]
    return ids[: max(len(ids) - remove, 0)], ids[len(ids) - window :]
