"""Tensor types for matrices in ggml blocks: BlockTensor for all of them, QuantTensor for those of a GGUF file.

They hold blocks and unpack them. `quantize_on_read.py` has the third kind, whose blocks are made from floats.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.weights.ggml_types import BLOCK_SIZES, AnyType, GGMLType

__all__ = ["QUANTIZED", "BlockTensor", "QuantTensor"]

QUANTIZED = frozenset(type.name for type, (weights, _) in BLOCK_SIZES.items() if weights > 1)
"""Names of the ggml block types that can be unpacked."""


@dataclass(frozen=True, eq=False)
class BlockTensor(ABC):
    """A matrix in ggml blocks, which stay packed until a backend asks for the values.

    Each row consists of whole blocks, so rows can be permuted without unpacking them. Example: a Q4_0 block holds 32
    weights in 18 bytes, so a matrix of shape (8, 64) has `blocks()` of shape (8, 36).
    """

    name: str
    shape: tuple[int, ...]
    type: AnyType

    @property
    def dtype(self) -> str:
        """The ggml type in lower case, such as "q4_0"."""
        return self.type.name.lower()

    @property
    def nbytes(self) -> int:
        """Size of all blocks in bytes."""
        weights, size = BLOCK_SIZES[GGMLType(self.type)]
        return prod(self.shape) // weights * size

    @abstractmethod
    def blocks(self) -> NDArray[np.uint8]:
        """The packed blocks, uint8 [rows, bytes_per_row]; may be a read-only view of the file."""

    def stored(self) -> tuple[NDArray[np.uint8], NDArray[np.intp] | None]:
        """Blocks as they are stored, and for each row its row in these; None: the same. A copy is saved."""
        return self.blocks(), None

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Unpacked values of `shape`; in float32 bit for bit those of `gguf.quants.dequantize`."""
        with np.errstate(over="ignore", invalid="ignore"):  # a file may hold infinite scales
            values = self.unpack(self.blocks())
        return values.reshape(self.shape).astype(dtype, copy=False)

    def unpack(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The values of some rows of `blocks`, float32 [rows, columns]."""
        from gguf import GGMLQuantizationType, quants

        values: NDArray[np.float32] = quants.dequantize(blocks, GGMLQuantizationType(self.type))
        return values

    @abstractmethod
    def permute_rows(self, order: NDArray[np.intp]) -> Self:
        """The matrix whose row i is row `order[i]` of this one; nothing is unpacked."""


@dataclass(frozen=True, eq=False)
class QuantTensor(BlockTensor):
    """A matrix whose blocks are stored in a file."""

    data: NDArray[np.uint8]
    """[rows, bytes_per_row], usually a view of the mapped file."""
    order: NDArray[np.intp] | None = None

    def blocks(self) -> NDArray[np.uint8]:
        """The packed blocks, uint8 [rows, bytes_per_row]; a read-only view of the file unless rows are permuted."""
        return self.data if self.order is None else self.data[self.order]

    def stored(self) -> tuple[NDArray[np.uint8], NDArray[np.intp] | None]:
        """`data` and `order`."""
        return self.data, self.order

    def permute_rows(self, order: NDArray[np.intp]) -> Self:
        """The matrix whose row i is row `order[i]` of this one; applied by `blocks`."""
        return replace(self, order=order if self.order is None else self.order[order])
