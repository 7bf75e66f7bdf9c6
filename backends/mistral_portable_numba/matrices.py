"""Weights in the layouts that kernels read: tiles of ggml blocks, and float matrices in the file's own order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.weights import BlockTensor, DenseTensor, Tensor, release
from mistral_portable_numba.layouts import BLOCKS, TILE_ROWS, round_up

__all__ = ["Matrix", "float_row", "matrix"]


@dataclass(frozen=True)
class Matrix:
    """A weight matrix. kind: its kernel is "linear_KIND". data: the array that the kernel reads; for blocks,
    `fill` writes it. parts: the tensors of blocks to pack."""

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

    def fill(self, pack: Callable[[list[int]], None]) -> None:
        """Pack the blocks into tiles, and release the file's pages. pack: runs the kernel `pack` on arguments."""
        layout = BLOCKS[self.kind]
        blocks = self.columns // layout.columns
        sources = [np.ascontiguousarray(part.blocks()) for part in self.parts]
        source = sources[0] if len(sources) == 1 else np.concatenate(sources)
        pack(
            [
                self.row_pairs,
                self.rows,
                blocks,
                source.ctypes.data,
                layout.bytes,
                layout.half,
                layout.payload,
                layout.dwords,
                self.address,
            ]
        )
        for array in sources:
            release(array)


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


def float_row(parts: Sequence[Tensor]) -> NDArray[np.float32]:
    """A parameter vector in float32, padded with zeros to whole SIMD vectors of 16."""
    values = np.concatenate([part.numpy(np.float32) for part in parts])
    row = np.zeros(round_up(len(values), 16), np.float32)
    row[: len(values)] = values
    return row
