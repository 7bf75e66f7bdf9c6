"""ggml blocks repacked into planes that Triton's kernels read in whole words: codes, scales, minima.

A group is 32 columns. Its column 4 i + k, i in 0 .. 7 and k in 0 .. 3, has its code in the k-th of four words, at place
i. So a thread that loads four words has a whole group, and the codes at one place are those of 4 columns in a row.
Codes of 3, 5, 6 and 8 bits lie in two planes: those of 5, the lower 4 bits in words of 32, the upper one in bytes.

A matrix takes as many bytes as its blocks do, except for K types and IQ4_XS, whose scales and minima of 4 or 6 bits
become bytes: 256 weights of Q4_K take 148 in place of 144, of Q5_K 180 (176), of Q3_K 114 (110), of Q2_K
100 (84), of Q6_K 210 (210), of IQ4_XS 138 (136).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mistral_portable_torch.ggml import LAYOUTS, Parts, in_slices

__all__ = ["GROUP", "Planes"]

GROUP = 32
"""Columns of a group."""

_PLACES = 8
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Types of words with _PLACES codes, by the bits of a code."""


@dataclass(frozen=True)
class Planes:
    """Weights [..., O, I] of ggml's `kind`.

    codes: for each number of `Layout.bits`, words with codes of so many bits, [..., O, I / 32, 4]. scales, minima:
    [..., O, I / 32 or I / 16], float16, or small integers to be multiplied by d and dmin, float16 [..., O, I / 256].
    """

    kind: str
    codes: tuple[Tensor, ...]
    scales: Tensor
    minima: Tensor | None
    d: Tensor | None
    dmin: Tensor | None

    @classmethod
    def empty(cls, kind: str, shape: Sequence[int], device: torch.device) -> "Planes":
        """Planes of a matrix of the shape O, I, to be filled; on the device "meta" they take no memory."""
        layout = LAYOUTS[kind]
        blocks = torch.empty(shape[0], shape[1] // layout.columns * layout.bytes, dtype=torch.uint8, device="meta")
        return _repacked(blocks, kind).each(lambda plane: torch.empty_like(plane, device=device))

    @property
    def nbytes(self) -> int:
        return sum(plane.nbytes for plane in self._all())

    @property
    def shape(self) -> tuple[int, int]:
        """O, I"""
        return self.codes[0].shape[-3], self.codes[0].shape[-2] * GROUP

    def each(self, change: Callable[[Tensor], Tensor]) -> "Planes":
        """Planes changed by a function that leaves the dimensions behind O as they are."""
        minima, d, dmin = (None if plane is None else change(plane) for plane in (self.minima, self.d, self.dmin))
        return Planes(self.kind, tuple(change(plane) for plane in self.codes), change(self.scales), minima, d, dmin)

    def __getitem__(self, rows: slice | Tensor) -> "Planes":
        """Some rows of a matrix."""
        return self.each(lambda plane: plane[rows])

    def fill(self, blocks: Tensor) -> None:
        """Repack blocks uint8 [O, bytes per row]. Takes up to 5 bytes a weight meanwhile.

        Example: a block of Q4_0 has the codes 0, 1, 2 .. 15, 0, 1, 2 .. 15. Word 0 of its four has those of the columns
        0, 4, 8 .. 28, from its lowest bits on: 0, 4, 8, 12, 0, 4, 8, 12. So it is 0xc840c840.
        """
        for plane, part in zip(self._all(), _repacked(blocks, self.kind)._all(), strict=True):
            plane.copy_(part)

    def weights(self, dtype: torch.dtype) -> Tensor:
        """[..., O, I] in `dtype`, by torch's operations: the same bits as by `Layout.rows`."""
        if self.scales.ndim > 2:
            return self._unpacked().to(dtype)
        return in_slices(lambda some: self[some]._unpacked(), self.shape, dtype, self.scales.device)

    def _all(self) -> Iterator[Tensor]:
        for plane in (*self.codes, self.scales, self.minima, self.d, self.dmin):
            if plane is not None:
                yield plane

    def _unpacked(self) -> Tensor:
        layout = LAYOUTS[self.kind]
        codes = torch.zeros((), dtype=torch.uint8, device=self.scales.device)
        for plane, (bits, below) in zip(self.codes, _bits(self.kind), strict=True):
            codes = codes | (_codes(plane, bits) << below).flatten(-3)
        blocks = self.shape[1] // layout.columns

        def split(plane: Tensor | None) -> Any:
            return None if plane is None else plane.unflatten(-1, (blocks, -1))

        parts = Parts(split(codes), split(self.scales), split(self.minima), split(self.d), split(self.dmin))
        return layout.weights(parts).flatten(-2)


def _repacked(blocks: Tensor, kind: str) -> Planes:
    layout = LAYOUTS[kind]
    parts = layout.parts(blocks.unflatten(-1, (-1, layout.bytes)))
    codes = parts.codes.flatten(-2).unflatten(-1, (-1, _PLACES, 4))
    words = tuple(_words(codes >> below, bits) for bits, below in _bits(kind))

    def joined(plane: Tensor | None) -> Any:
        return None if plane is None else plane.flatten(-2)

    return Planes(kind, words, joined(parts.scales), joined(parts.minima), joined(parts.d), joined(parts.dmin))


def _bits(kind: str) -> list[tuple[int, int]]:
    """Bits of a code in each plane, and bits of it in the planes before."""
    bits = LAYOUTS[kind].bits
    return list(zip(bits, accumulate(bits, initial=0), strict=False))


def _words(codes: Tensor, bits: int) -> Tensor:
    """The low `bits` bits of codes, uint8 [..., 8, 4] -> words [..., 4]"""
    words = torch.zeros_like(codes[..., 0, :], dtype=_WORDS[bits])
    for place in range(_PLACES):
        words |= (codes[..., place, :] & (2**bits - 1)).to(words.dtype) << (bits * place)
    return words


def _codes(words: Tensor, bits: int) -> Tensor:
    """words [..., 4] -> codes, uint8 [..., 8, 4]"""
    places = torch.arange(0, bits * _PLACES, bits, dtype=words.dtype, device=words.device)
    codes = words[..., None, :] >> places[:, None]
    codes &= 2**bits - 1
    return codes.to(torch.uint8)
