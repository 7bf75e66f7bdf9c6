"""Weights in the layouts that kernels read: tiles of ggml blocks, and float matrices in the file's own order."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.weights import BlockTensor, DenseTensor, Tensor, release
from mistral_portable_numba.layouts import BLOCKS, TILE_ROWS, round_up

__all__ = ["Matrix", "Packing", "float_row", "matrix"]


@dataclass(frozen=True)
class Matrix:
    """A weight matrix. kind: its kernel is "linear_KIND". data: the array that the kernel reads; for blocks,
    the kernel `pack` writes it. parts: the tensors of blocks to pack."""

    kind: str
    rows: int
    columns: int
    data: NDArray[Any]
    parts: Sequence[BlockTensor]

    @property
    def address(self) -> int:
        """The address of `data`."""
        return self.data.ctypes.data

    @property
    def row_pairs(self) -> int:
        """The number of pairs of tiles."""
        return round_up(self.rows, 2 * TILE_ROWS) // (2 * TILE_ROWS)

    def packing(self) -> "Packing":
        """The arguments with which the kernel `pack` makes tiles of the blocks."""
        layout = BLOCKS[self.kind]
        stored, order = self.parts[0].stored() if len(self.parts) == 1 else (_joined(self.parts), None)
        source = np.ascontiguousarray(stored)
        places = np.arange(self.rows, dtype=np.int64) if order is None else np.ascontiguousarray(order, np.int64)
        addresses = [source.ctypes.data, places.ctypes.data]
        block = [layout.bytes, layout.half, layout.payload, layout.dwords]
        sizes = [self.row_pairs, self.rows, self.columns // layout.columns]
        return Packing([*sizes, *addresses, *block, self.address], source, places)


@dataclass(frozen=True)
class Packing:
    """Arguments of the kernel `pack`, without the counter, and the arrays that they point to."""

    arguments: Sequence[int]
    source: NDArray[np.uint8]
    places: NDArray[np.int64]


def matrix(parts: Sequence[Tensor], quantized: bool) -> Matrix:
    """One matrix with the rows of all parts: in tiles if `quantized` and all are blocks of one type, else floats.

    Only fused projections (`fuse_linears`) have several parts; parts of different types are unpacked to float32.
    """
    rows, columns = sum(part.shape[0] for part in parts), parts[0].shape[1]
    kinds = {part.dtype for part in parts}
    blocks = [part for part in parts if isinstance(part, BlockTensor)]
    if quantized and len(blocks) == len(parts) and len(kinds) == 1:
        layout = BLOCKS[blocks[0].dtype]
        size = round_up(rows, 2 * TILE_ROWS) * (columns // layout.columns) * layout.bytes
        return Matrix(blocks[0].dtype, rows, columns, np.empty(size, np.uint8), blocks)
    if len(parts) == 1 and isinstance(parts[0], DenseTensor):
        return Matrix(parts[0].dtype, rows, columns, np.ascontiguousarray(parts[0].raw()), ())
    floats = [part.numpy(np.float32) for part in parts]
    return Matrix("float32", rows, columns, floats[0] if len(floats) == 1 else np.concatenate(floats), ())


def _joined(parts: Sequence[BlockTensor]) -> NDArray[np.uint8]:
    """Copy the blocks of all parts, [rows, bytes_per_row], and release the file's pages."""
    stored = [part.stored() for part in parts]
    joined = np.concatenate([blocks if order is None else blocks[order] for blocks, order in stored])
    for blocks, _ in stored:
        release(blocks)
    return joined


def float_row(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    """A parameter vector in float32, padded with zeros to whole SIMD vectors of 16."""
    values = np.concatenate([part.numpy(np.float32) for part in parts])
    row = np.zeros(round_up(len(values), 16), np.float32)
    row[: len(values)] = values
    return row
