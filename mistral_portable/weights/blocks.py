"""Tensor types for matrices in ggml blocks: BlockTensor for all of them, QuantTensor for those of a GGUF file.

They hold blocks and unpack them. `quantize_on_read.py` has the third kind, whose blocks are made from floats.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

__all__ = ["QUANTIZED", "BlockTensor", "QuantTensor"]

QUANTIZED = frozenset(
    ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
)
"""Names of the ggml block types that can be unpacked."""


@dataclass(frozen=True, eq=False)
class BlockTensor(ABC):
    """A matrix in ggml blocks, which stay packed until a backend asks for the values.

    Each row consists of whole blocks, so rows can be permuted without unpacking them. Example: a Q4_0 block holds 32
    weights in 18 bytes, so a matrix of shape (8, 64) has `blocks()` of shape (8, 36).
    """

    name: str
    shape: tuple[int, ...]
    type: "GGMLQuantizationType"

    @property
    def dtype(self) -> str:
        """The ggml type in lower case, such as "q4_0"."""
        return self.type.name.lower()

    @property
    def nbytes(self) -> int:
        """Size of all blocks in bytes."""
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.type]
        return prod(self.shape) // block * size

    @abstractmethod
    def blocks(self) -> NDArray[np.uint8]:
        """The packed blocks, uint8 [rows, bytes_per_row]; may be a read-only view of the file."""

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Unpacked values of `shape`; in float32 bit for bit those of `gguf.quants.dequantize`."""
        from gguf.quants import dequantize

        with np.errstate(over="ignore", invalid="ignore"):  # a file may hold infinite scales
            values: NDArray[np.float32] = dequantize(self.blocks(), self.type)
        return values.reshape(self.shape).astype(dtype, copy=False)

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

    def permute_rows(self, order: NDArray[np.intp]) -> Self:
        """The matrix whose row i is row `order[i]` of this one; applied by `blocks`."""
        return replace(self, order=order if self.order is None else self.order[order])
