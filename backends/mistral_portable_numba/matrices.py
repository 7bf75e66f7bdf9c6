"""Weights in the layouts that kernels read: tiles of ggml blocks, and float matrices in the file's own order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary.shared import gigabytes
from mistral_portable.errors import CapacityError
from mistral_portable.weights import BlockTensor, DenseTensor, Tensor, release
from mistral_portable_numba.layouts import BLOCKS, TILE_ROWS, round_up
from mistral_portable_numba.memory import in_huge_pages

__all__ = ["Matrix", "Packing", "float_row", "floats", "matrices"]


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


def matrices(weights: Mapping[str, Sequence[Tensor]], *, quantized: bool) -> dict[str, Matrix]:
    """A matrix for each name, with the rows of all its parts: in tiles if `quantized` and all are blocks of one type,
    else floats.

    Tiles of all matrices lie one after the other, so that huge pages hold them. Raises CapacityError without memory.
    """
    tiled = {name: _tile_bytes(parts) if quantized else 0 for name, parts in weights.items()}
    made, begin = {}, 0
    try:
        memory = in_huge_pages((sum(tiled.values()),))
        for name, parts in weights.items():
            end = begin + tiled[name]
            made[name] = _tiles(parts, memory[begin:end]) if tiled[name] else floats(parts)
            begin = end
    except MemoryError as error:
        size = sum(tiled[name] or 4 * prod(_shape(parts)) for name, parts in weights.items())
        raise CapacityError(
            f"no memory is left for weights of {gigabytes(size)}: use --dtype int8, --quantize q4_0 or a smaller model"
        ) from error
    return made


def floats(parts: Sequence[Tensor]) -> Matrix:
    """A matrix with the rows of all parts, as they lie in the file if there is one part, and it is no blocks."""
    rows, columns = _shape(parts)
    if len(parts) == 1 and isinstance(parts[0], DenseTensor):
        return Matrix(parts[0].dtype, rows, columns, np.ascontiguousarray(parts[0].raw()), ())
    unpacked = [part.numpy(np.float32) for part in parts]
    return Matrix("float32", rows, columns, unpacked[0] if len(unpacked) == 1 else np.concatenate(unpacked), ())


def _tile_bytes(parts: Sequence[Tensor]) -> int:
    """Bytes of the tiles of a matrix, or 0 if its parts are not blocks of one type.

    Only fused projections (`fuse_linears`) have several parts; parts of different types are unpacked to float32.
    """
    blocks = _blocks(parts)
    if len(blocks) < len(parts) or len({part.dtype for part in parts}) > 1:
        return 0
    layout, (rows, columns) = BLOCKS[blocks[0].dtype], _shape(parts)
    return round_up(rows, 2 * TILE_ROWS) * (columns // layout.columns) * layout.bytes


def _tiles(parts: Sequence[Tensor], memory: NDArray[np.uint8]) -> Matrix:
    blocks = _blocks(parts)
    return Matrix(blocks[0].dtype, *_shape(parts), memory, blocks)


def _blocks(parts: Sequence[Tensor]) -> list[BlockTensor]:
    return [part for part in parts if isinstance(part, BlockTensor)]


def _shape(parts: Sequence[Tensor]) -> tuple[int, int]:
    """The rows of all parts, and their columns."""
    return sum(part.shape[0] for part in parts), parts[0].shape[1]


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
