"""PackedTensor: base class of the matrices of AWQ, GPTQ, FP8 and compressed-tensors, which backends unpack."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["PackedTensor", "bit_fields"]


def bit_fields(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Unpack the fields of `bits` bits (1 to 8) of each row, the lowest bits first: [rows, words * 32 / bits].

    words: [rows, words], 32 bits each. A field may cross the words of its row. Example with 3 bits: 0b01_000 in the
    highest bits of a word and 0b1 in the lowest bit of the next are the fields 0 and 0b101.
    """
    rows = words.shape[0]
    octets = np.ascontiguousarray(words).view(np.uint8)
    ones = np.unpackbits(octets, axis=-1, bitorder="little").reshape(rows, -1, bits)
    return np.packbits(ones, axis=-1, bitorder="little").reshape(rows, -1)


@dataclass(frozen=True, eq=False)
class PackedTensor(ABC):
    """A matrix in the layout of its format, which stays packed until `numpy` is called."""

    name: str
    shape: tuple[int, ...]
    order: NDArray[np.intp] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def dtype(self) -> str:
        """The name of the stored type, such as "gptq_4bit"."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Size of all parts in bytes."""

    @abstractmethod
    def unpack(self) -> NDArray[np.float32]:
        """Unpacked values of `shape`, with the rows in the order of the file."""

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Unpacked values of `shape`, computed in float32 whatever the dtype of the scales."""
        with np.errstate(over="ignore", invalid="ignore"):  # a file may hold infinite scales
            values = self.unpack()
        return (values if self.order is None else values[self.order]).astype(dtype, copy=False)

    def permute_rows(self, order: NDArray[np.intp]) -> Self:
        """The matrix whose row i is row `order[i]` of this one; applied by `numpy`."""
        return replace(self, order=order if self.order is None else self.order[order])
