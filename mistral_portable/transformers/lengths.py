"""How long encoded rows become: what the arguments for padding and truncation mean together."""

import operator
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from mistral_portable.errors import InputError

__all__ = ["Lengths", "PaddingStrategy", "TruncationStrategy", "positive", "resolve", "strategy", "truncate"]

S = TypeVar("S", bound=StrEnum)

UNLIMITED = int(1e20)  # a tokenizer's model_max_length beyond this says that there is no limit


class PaddingStrategy(StrEnum):
    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TruncationStrategy(StrEnum):
    LONGEST_FIRST = "longest_first"
    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    DO_NOT_TRUNCATE = "do_not_truncate"


@dataclass(frozen=True)
class Lengths:
    """The arguments, resolved.

    Attributes:
        padding: The strategy.
        truncates: Whether rows longer than `max_length` are cut.
        max_length: Tokens, if any limit was given.
        multiple: Padded rows have a multiple of so many tokens.
        side: "left" or "right", where padding goes.
    """

    padding: PaddingStrategy
    truncates: bool
    max_length: int | None
    multiple: int
    side: str

    def padded(self, longest: int) -> int:
        """The length that shorter rows of a batch get, if its longest row has `longest` tokens.

        >>> Lengths(PaddingStrategy.LONGEST, False, None, 8, "left").padded(13)
        16
        """
        if self.padding is PaddingStrategy.DO_NOT_PAD:
            return 0
        length = self.max_length if self.padding is PaddingStrategy.MAX_LENGTH and self.max_length else longest
        return -(-length // self.multiple) * self.multiple

    def fill(self, row: list[Any], length: int, filler: int) -> list[Any]:
        """The row with fillers up to `length`; as it is if it is longer."""
        fillers = [filler] * (length - len(row))
        return fillers + row if self.side == "left" else row + fillers


def resolve(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    multiple: int | None,
    side: str,
    model_max_length: int,
    verbose: bool,
) -> Lengths:
    """Apply transformers' rules: `max_length` alone truncates; True is "longest", or "longest_first".

    A strategy that needs a limit takes `model_max_length`; if that is unlimited, it does nothing, with a warning.

    Raises:
        ValueError: An argument is no strategy, length or side, or rows cut to `max_length` would be no multiple.
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = True
    pads = strategy("padding", PaddingStrategy, padding)
    cuts = strategy("truncation", TruncationStrategy, False if truncation is None else truncation)
    if cuts in (TruncationStrategy.ONLY_FIRST, TruncationStrategy.ONLY_SECOND):
        raise InputError(f"truncation={cuts.value!r} is for pairs of texts, which are not supported; pass True")
    if side not in ("left", "right"):
        raise InputError(f'padding_side={side!r} is neither "left" nor "right"')
    max_length = None if max_length is None else positive("max_length", max_length)
    multiple = 1 if multiple is None else positive("pad_to_multiple_of", multiple)
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


def strategy(name: str, kind: type[S], value: Any) -> S:
    """The strategy of this name; True is the first of its kind and False the last. Raises ValueError for others."""
    if isinstance(value, bool):
        return list(kind)[0 if value else -1]
    try:
        return kind(getattr(value, "value", value))  # transformers' own enumerations have values, too
    except ValueError:
        raise InputError(f"{name}={value!r} is no strategy; there are True, False, {', '.join(kind)}") from None


def positive(name: str, value: int, least: int = 1) -> int:
    """The value, if it is an integer from `least` on; else raises ValueError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"{name}={value!r} must be an integer from {least} on")
    return number


def truncate(ids: list[int], remove: int, side: str, stride: int) -> tuple[list[int], list[int]]:
    """The ids without `remove` at the side, and those removed with `stride` neighbours more.

    >>> truncate([1, 2, 3, 4, 5], 2, "right", 1)
    ([1, 2, 3], [3, 4, 5])
    """
    window = min(len(ids), remove + stride)
    if side == "left":
        return ids[remove:], ids[:window]
    return ids[: max(len(ids) - remove, 0)], ids[len(ids) - window :]
