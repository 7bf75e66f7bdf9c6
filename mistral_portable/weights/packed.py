"""Matrices that backends unpack: what those of AWQ, GPTQ, FP8 and compressed-tensors have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["PackedTensor", "bit_fields"]


def bit_fields(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The fields of `bits` bits (1 to 8) of each row, the lowest bits first, [rows, words * 32 / bits].

    A field may cross the words of its row: with 3 bits, 0b01_000 in the last bits of a word and 0b1 in the next
    are 0, then 0b101. `words` is [rows, words], 32 bits each.
    """
    rows = words.shape[0]
    octets = np.ascontiguousarray(words).view(np.uint8)
    ones = np.unpackbits(octets, axis=-1, bitorder="little").reshape(rows, -1, bits)
    return np.packbits(ones, axis=-1, bitorder="little").reshape(rows, -1)


@dataclass(frozen=True, eq=False)
class PackedTensor(ABC):
    """A matrix whose stored layout is its own; it stays packed until `numpy` is called."""

    name: str
    shape: tuple[int, ...]
    order: NDArray[np.intp] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def dtype(self) -> str: ...

    @property
    @abstractmethod
    def nbytes(self) -> int: ...

    @abstractmethod
    def unpack(self) -> NDArray[np.float32]:
        """The values of `shape`, in the order of the file."""

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Unpacked values of `shape`: the arithmetic is float32's, whatever type the scales have."""
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite scale gives what the file says
            values = self.unpack()
        return (values if self.order is None else values[self.order]).astype(dtype, copy=False)

    def permute_rows(self, order: NDArray[np.intp]) -> Self:
        return replace(self, order=order if self.order is None else self.order[order])
