"""Weights on the device: dense matrices, and packed ggml blocks."""

from collections.abc import Collection, Iterator, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, linear

from mistral_portable.errors import BackendError
from mistral_portable.weights import BlockTensor, DenseTensor, release
from mistral_portable.weights import Tensor as Stored
from mistral_portable_torch.bits_and_bytes import quantized, quantized_bytes
from mistral_portable_torch.ggml import LAYOUTS, SLICE
from mistral_portable_torch.packed import Packed, has_kernels
from mistral_portable_torch.planes import Planes

__all__ = ["Blocks", "Dense", "Matrix", "form", "read_matrix", "read_vector", "stored_bytes"]

_SLICE = 2**26  # bytes copied from the file to the device at a time, so that the host holds no more of a tensor


class Matrix(Protocol):
    """The weight [O, I] of a linear, or an embedding table."""

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, I], bias [O] -> [T, O]"""

    def rows(self, tokens: Tensor) -> Tensor:
        """tokens [T] -> their rows [T, I]"""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""


class Dense:
    """weight [O, I] in the program's dtype."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.nbytes = weight.nbytes
        self.ours: Collection[int] = ()
        """Numbers of tokens that our kernel multiplies (`faster.choose`); torch's multiplies all others."""

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if len(x) not in self.ours:
            return linear(x, self.weight, bias)
        from mistral_portable_torch import float_gemv

        out = float_gemv.multiply(x, self.weight)
        return out if bias is None else out + bias

    def gated(self, x: Tensor) -> Tensor | None:
        """x [T, I] -> SwiGLU of the products with gate's rows, which lie above, and up's, [T, O / 2]; None where that
        takes more than one kernel."""
        if len(x) not in self.ours:
            return None
        from mistral_portable_torch import float_gemv

        return float_gemv.multiply(x, self.weight, gated=True)

    def rows(self, tokens: Tensor) -> Tensor:
        return embedding(tokens, self.weight)

    def one_of(self, index: int, count: int) -> "Dense":
        """Matrix `index` of `count` matrices that are stacked by rows."""
        return Dense(self.weight.unflatten(0, (count, -1))[index])

    def some_of(self, indices: Tensor, count: int) -> Tensor:
        """The matrices of the indices [n] among `count` stacked ones, [n, O, I]."""
        return self.weight.unflatten(0, (count, -1))[indices]


class Blocks:
    """blocks uint8 [O, bytes per row] of ggml's `kind`, unpacked by torch's operations for every product."""

    def __init__(self, blocks: Tensor, kind: str, dtype: torch.dtype) -> None:
        self._blocks, self._kind, self._layout, self._dtype = blocks, kind, LAYOUTS[kind], dtype
        self.nbytes = blocks.nbytes

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self._layout.rows(self._blocks, self._dtype), bias)

    def rows(self, tokens: Tensor) -> Tensor:
        return self._layout.rows(self._blocks[tokens], self._dtype)

    def one_of(self, index: int, count: int) -> "Blocks":
        """Matrix `index` of `count` matrices that are stacked by rows."""
        return Blocks(self._blocks.unflatten(0, (count, -1))[index], self._kind, self._dtype)

    def some_of(self, indices: Tensor, count: int) -> Tensor:
        """The matrices of the indices [n] among `count` stacked ones, unpacked, [n, O, I]."""
        return self._layout.rows(self._blocks.unflatten(0, (count, -1))[indices], self._dtype)


def form(tensor: Stored) -> str:
    """The form of a matrix on the device: a ggml type, or "dense". Matrices of one form can be joined."""
    return tensor.dtype if isinstance(tensor, BlockTensor) else "dense"


def stored_bytes(tensor: Stored, dtype: torch.dtype, device: torch.device, quantize: str | None = None) -> int:
    """Bytes on the device of a program in `dtype`. quantize: the bitsandbytes type of float matrices, if any."""
    if isinstance(tensor, BlockTensor):
        if has_kernels(device):
            return Planes.empty(tensor.dtype, tensor.shape, torch.device("meta")).nbytes
        return tensor.nbytes
    return quantized_bytes(tensor.shape, quantize) if quantize else prod(tensor.shape) * dtype.itemsize


def read_matrix(
    parts: Sequence[Stored], dtype: torch.dtype, device: torch.device, quantize: str | None = None
) -> Matrix:
    """Join the rows of all parts to one matrix, and release the file's pages. Raises BackendError if forms differ.

    quantize: the bitsandbytes type that a dense matrix is converted to, if any.
    """
    kind = form(parts[0])
    if any(form(part) != kind for part in parts):
        kinds = ", ".join(sorted({form(part) for part in parts}))
        raise BackendError(
            f"{parts[0].name} and the tensors joined with it have several types ({kinds}): choose backend 'numba'"
        )
    if kind == "dense":
        weight = _floats(parts, dtype, device)
        return quantized(weight, quantize) if quantize else Dense(weight)
    blocks = [part for part in parts if isinstance(part, BlockTensor)]
    shape = sum(part.shape[0] for part in blocks), blocks[0].shape[1]
    if has_kernels(device):
        return Packed(_planes(blocks, kind, shape, device), dtype)
    packed = torch.empty(shape[0], blocks[0].nbytes // blocks[0].shape[0], dtype=torch.uint8, device=device)
    for target, part in zip(packed.split([part.shape[0] for part in blocks]), blocks, strict=True):
        _fill(target, part.blocks())
    return Blocks(packed, kind, dtype)


def read_vector(parts: Sequence[Stored], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Read a norm's weight or a bias."""
    return _floats(parts, dtype, device)


def _floats(parts: Sequence[Stored], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The rows of all parts, [sum of rows, ...] in `dtype`."""
    rows = [part.shape[0] for part in parts]
    joined = torch.empty(sum(rows), *parts[0].shape[1:], dtype=dtype, device=device)
    for target, part in zip(joined.split(rows), parts, strict=True):
        if isinstance(part, DenseTensor):
            _fill(target, part.raw(), torch.bfloat16 if part.dtype == "bfloat16" else None)
        else:
            _fill(target, part.numpy())
    return joined


def _planes(parts: Sequence[BlockTensor], kind: str, shape: tuple[int, int], device: torch.device) -> Planes:
    """Repack the rows of all parts on the device, SLICE weights at a time."""
    planes, begin = Planes.empty(kind, shape, device), 0
    for part in parts:
        blocks = part.blocks()
        for rows in _slices(len(blocks), SLICE // shape[1]):
            staged = torch.from_numpy(np.array(blocks[rows])).to(device)
            planes[begin : begin + len(staged)].fill(staged)
            begin += len(staged)
        release(blocks)
    return planes


def _fill(target: Tensor, array: NDArray[Any], stored: torch.dtype | None = None) -> None:
    """Copy an array to the device, a slice at a time. stored: the type of its bits, if NumPy has no such type."""
    for part in _slices(len(array), _SLICE * len(array) // max(1, array.nbytes)):
        staged = torch.from_numpy(np.array(array[part]))  # a copy: torch takes no read-only arrays
        target[part].copy_(staged if stored is None else staged.view(stored))
    release(array)


def _slices(count: int, together: int) -> Iterator[slice]:
    """Slices of some of `count` rows, at least one at a time."""
    step = max(1, together)
    for begin in range(0, count, step):
        yield slice(begin, begin + step)
