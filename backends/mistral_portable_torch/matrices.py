"""Weights on the device: dense matrices, and ggml's blocks as they are stored."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
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
from mistral_portable_torch.ggml import LAYOUTS

__all__ = ["Blocks", "Dense", "Matrix", "form", "read_matrix", "read_vector", "stored_bytes"]

MOST_TOKENS = 8
"""Beyond, unpacking a matrix once for all tokens is cheaper than reading its blocks for each."""

_FLOATS = ("float32", "float16", "bfloat16")
_SLICE = 2**26  # bytes that go from the file to the device at a time: the host holds no more of a tensor


class Matrix(Protocol):
    """A weight [O, I] that activations are multiplied with, or a table that rows are taken from."""

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, I], bias [O] -> [T, O]"""

    def rows(self, tokens: Tensor) -> Tensor:
        """[T] -> [T, I]"""

    @property
    def nbytes(self) -> int:
        """On the device."""


class Dense:
    """weight [O, I] in the program's dtype."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self.nbytes = weight.nbytes

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self._weight, bias)

    def rows(self, tokens: Tensor) -> Tensor:
        return embedding(tokens, self._weight)

    def one_of(self, index: int, count: int) -> "Dense":
        """The matrix of the index among `count` matrices that lie one below the other."""
        return Dense(self._weight.unflatten(0, (count, -1))[index])

    def some_of(self, indices: Tensor, count: int) -> Tensor:
        """Those of the indices [n], as [n, O, I]."""
        return self._weight.unflatten(0, (count, -1))[indices]


class Blocks:
    """blocks uint8 [O, bytes of a row] of ggml's `kind`; unpacked for each product, and then forgotten.

    On a CUDA GPU, a product of few tokens reads them as they are, if Triton and a kernel for the kind are there.
    """

    def __init__(self, blocks: Tensor, kind: str, dtype: torch.dtype) -> None:
        self._blocks, self._kind, self._layout, self._dtype = blocks, kind, LAYOUTS[kind], dtype
        self._kernel = gemv_of(kind) if blocks.is_cuda else None
        self.nbytes = blocks.nbytes

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self._kernel is not None and len(x) <= MOST_TOKENS:
            out = self._kernel(x, self._blocks)
            return out if bias is None else out + bias
        return linear(x, self._layout.rows(self._blocks, self._dtype), bias)

    def rows(self, tokens: Tensor) -> Tensor:
        return self._layout.rows(self._blocks[tokens], self._dtype)

    def one_of(self, index: int, count: int) -> "Blocks":
        """The matrix of the index among `count` matrices that lie one below the other."""
        return Blocks(self._blocks.unflatten(0, (count, -1))[index], self._kind, self._dtype)

    def some_of(self, indices: Tensor, count: int) -> Tensor:
        """The matrices of the indices, unpacked [n, rows, columns]."""
        return self._layout.rows(self._blocks.unflatten(0, (count, -1))[indices], self._dtype)


@cache
def gemv_of(kind: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The kernel of `gemv.py` that takes x and blocks of the kind; None, with a notice, if there is none."""
    try:
        from mistral_portable_torch import gemv
    except ImportError as error:
        warnings.warn(
            f"4-bit weights are unpacked for every token, which is slow, as Triton is missing ({error}): "
            "pip install triton",
            stacklevel=2,
        )
        return None
    if kind not in gemv.KINDS:
        warnings.warn(
            f"weights in {kind} are unpacked for every token, which is slow: the types that are not are "
            f"{', '.join(gemv.KINDS)}",
            stacklevel=2,
        )
        return None
    return partial(gemv.multiply, kind=kind)


def form(tensor: Stored) -> str:
    """How a stored matrix lies on the device: a ggml type, or "dense". Matrices of one form can be joined."""
    return tensor.dtype if isinstance(tensor, BlockTensor) else "dense"


def stored_bytes(tensor: Stored, dtype: torch.dtype, quantize: str | None = None) -> int:
    """Its bytes on the device of a program in `dtype`, where floats are quantized so."""
    if isinstance(tensor, BlockTensor):
        return tensor.nbytes
    return quantized_bytes(tensor.shape, quantize) if quantize else prod(tensor.shape) * dtype.itemsize


def read_matrix(
    parts: Sequence[Stored], dtype: torch.dtype, device: torch.device, quantize: str | None = None
) -> Matrix:
    """The rows of all parts, which must have one form, as one matrix. Pages of the file are given back.

    quantize: what dense ones become, a type of bits_and_bytes.py.
    """
    kind = form(parts[0])
    if any(form(part) != kind for part in parts):
        kinds = ", ".join(sorted({form(part) for part in parts}))
        raise BackendError(f"{parts[0].name} and the like are of several types ({kinds}): choose backend 'numba'")
    if kind == "dense":
        weight = _floats(parts, dtype, device)
        return quantized(weight, quantize) if quantize else Dense(weight)
    blocks = [part for part in parts if isinstance(part, BlockTensor)]
    sizes = [part.shape[0] for part in blocks]
    packed = torch.empty(sum(sizes), blocks[0].nbytes // sizes[0], dtype=torch.uint8, device=device)
    for target, part in zip(packed.split(sizes), blocks, strict=True):
        _fill(target, part.blocks())
    return Blocks(packed, kind, dtype)


def read_vector(parts: Sequence[Stored], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A norm's weight or a bias."""
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


def _fill(target: Tensor, array: NDArray[Any], stored: torch.dtype | None = None) -> None:
    """Copy an array to the device, a slice at a time. stored: what its bits mean, if NumPy has no such type."""
    for part in _slices(array):
        staged = torch.from_numpy(np.array(array[part]))  # a copy: torch takes no read-only arrays
        target[part].copy_(staged if stored is None else staged.view(stored))
    release(array)


def _slices(array: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _SLICE * len(array) // max(1, array.nbytes))
    for begin in range(0, len(array), step):
        yield slice(begin, begin + step)
