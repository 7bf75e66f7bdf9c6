"""Stacks: pages of one layer group that are stepped together, in one array per part of a layer."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mistral_portable_mlx.attention import Format

__all__ = ["Parts", "Stack", "copied", "room"]

Parts = list[mx.array]
"""The arrays of a layer of a stack, each [pages, key/value heads, slots, n], in the order of `Format.parts`."""

_LEAST, _STEP = 256, 1024


def room(length: int, page_size: int) -> int:
    """Slots to allocate for `length` tokens, at most `page_size`: doublings from 256 to 1024, then finer steps.

    Attention reads all slots of a page, so unused ones cost time: at most 1024 or, in long lanes, an eighth. Examples:
    300 tokens get 512, 1500 get 2048, and 33,000 get 36,864.
    """
    if length <= _STEP:
        return min(page_size, max(_LEAST, 1 << (length - 1).bit_length()))
    step = max(_STEP, 1 << (length.bit_length() - 4))
    return min(page_size, -(-length // step) * step)


@dataclass(eq=False)
class Stack:
    """pages: the numbers of those that are its rows, in order. slots: of each. layers: the arrays of each layer."""

    pages: tuple[int, ...]
    slots: int
    layers: dict[int, Parts]

    def row(self, layer: int, page: int) -> Parts:
        """The arrays of one of its pages, each [1, heads, slots, n]."""
        at = self.pages.index(page)
        return [array[at : at + 1] for array in self.layers[layer]]


def copied(format: Format, heads: int, slots: int, rows: Sequence[Parts]) -> Parts:
    """Copy the arrays of pages, each [1, heads, slots or fewer, n] or none, into new ones, to be evaluated."""
    # Zeros: an empty slot gets the weight 0, and 0 * NaN would be NaN.
    made = format.empty(len(rows), heads, slots)
    for row, parts in enumerate(rows):
        for part, (new, old) in enumerate(zip(made, parts, strict=False)):
            if new.shape == old.shape:
                # MLX would make no copy but a view, which keeps all pages of the old array in memory.
                made[part] = old[mx.array([0])]
            else:
                new[row : row + 1, :, : old.shape[2]] = old
    return made
