"""Part: an array of the file to write, planned before it is read; arrays are read one at a time."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.adapters import MergedTensor
from mistral_portable.weights import BlockTensor, DenseTensor, JoinedTensor, Tensor, release

__all__ = [
    "FLOATS",
    "Part",
    "Progress",
    "StackedTensor",
    "block_part",
    "float_part",
    "forget",
    "is_float",
    "narrowest",
    "reporter",
    "rows_of",
]

Progress = Callable[[str, int, int], None]
"""Called as (what, done, in total), in any unit."""

FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The float types, and their sizes in bytes."""

_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
_SLICE = 2**20  # weights that are unpacked and rounded at a time


@dataclass(frozen=True)
class Part:
    """An array of the file to write. read: returns it, `nbytes` bytes. tensor: the source that it is read from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], NDArray[Any]]
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class StackedTensor:
    """Matrices of one shape, such as a layer's experts, stacked as one tensor with three axes."""

    name: str
    tensors: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of matrices, then the shape of each."""
        return (len(self.tensors), *self.tensors[0].shape)

    @property
    def dtype(self) -> str:
        """The stored type of the first matrix."""
        return self.tensors[0].dtype

    @property
    def nbytes(self) -> int:
        """Size of all matrices in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The values as a new array of `shape` and the floating `dtype`."""
        return np.stack([tensor.numpy(dtype) for tensor in self.tensors])

    def permute_rows(self, order: NDArray[np.intp]) -> "StackedTensor":
        """The tensor in which row i of each matrix is its row `order[i]`."""
        return dataclasses.replace(self, tensors=tuple(tensor.permute_rows(order) for tensor in self.tensors))


def block_part(name: str, tensor: Tensor) -> Part | None:
    """A part that copies ggml blocks unchanged; None for tensors that are not all in blocks of one type."""
    if isinstance(tensor, BlockTensor):
        return Part(name, tensor.dtype, tensor.shape, tensor.nbytes, tensor.blocks, tensor)
    if not isinstance(tensor, StackedTensor) or len({one.dtype for one in tensor.tensors}) > 1:
        return None
    each = [one for one in tensor.tensors if isinstance(one, BlockTensor)]

    def read() -> NDArray[np.uint8]:
        return np.stack([one.blocks() for one in each])

    return Part(name, tensor.dtype, tensor.shape, tensor.nbytes, read, tensor) if each else None


def float_part(name: str, tensor: Tensor, dtype: str) -> Part:
    """A part with the values of a tensor in a float type, bfloat16 as uint16; stored bits if the type is the same."""
    return Part(name, dtype, tensor.shape, prod(tensor.shape) * FLOATS[dtype], lambda: _floats(tensor, dtype), tensor)


def is_float(tensor: Tensor) -> bool:
    """Whether the tensor is stored as plain floats."""
    return tensor.dtype in FLOATS


def narrowest(tensor: Tensor, dtype: str) -> str:
    """`dtype` if it represents all values of the tensor exactly, else the tensor's own type."""
    exact = np.array_equal(_widened(_floats(tensor, dtype), dtype), tensor.numpy(), equal_nan=True)
    return dtype if exact else tensor.dtype


def forget(tensor: Any) -> None:
    """Release the mapped pages that a tensor was read from: of all arrays in its fields, recursively."""
    for value in (getattr(tensor, field.name) for field in dataclasses.fields(tensor)):
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, np.ndarray):
                release(item)
            elif dataclasses.is_dataclass(item):
                forget(item)


def reporter(parts: Sequence[Part], progress: Progress | None) -> Callable[[Part], None]:
    """A function for a writer to call after each part, which reports the bytes written so far to `progress`."""
    done, total = 0, sum(part.nbytes for part in parts)

    def report(part: Part) -> None:
        nonlocal done
        done += part.nbytes
        if progress:
            progress(part.name, done, total)

    return report


def _floats(tensor: Tensor, dtype: str) -> NDArray[Any]:
    if isinstance(tensor, StackedTensor):
        return np.stack([_floats(each, dtype) for each in tensor.tensors])
    if isinstance(tensor, JoinedTensor):
        tensor = tensor.joined()
    if isinstance(tensor, DenseTensor) and tensor.dtype == dtype:
        return tensor.raw()
    out, rows = np.empty(tensor.shape, _STORED[dtype]), rows_of(tensor)
    step = max(1, _SLICE * len(out) // out.size)
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float16 become infinite
        for part in (slice(begin, begin + step) for begin in range(0, len(out), step)):
            out[part] = _rounded(rows(part), dtype)
    return out


def rows_of(tensor: Tensor) -> Callable[[slice], NDArray[np.float32]]:
    """A function that reads a range of a tensor's rows in float32; if the layout allows, it unpacks only that range."""
    if isinstance(tensor, DenseTensor):
        return lambda part: tensor.rows(part).numpy()
    if isinstance(tensor, MergedTensor):
        read = rows_of(tensor.base)
        return lambda part: tensor.changed(read(part), part)
    if isinstance(tensor, BlockTensor):
        blocks, unpack = tensor.blocks(), tensor.unpack
        return lambda part: unpack(blocks[part])
    values: NDArray[np.float32] = tensor.numpy()
    return lambda part: values[part]


def _rounded(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype != "bfloat16":
        return values.astype(dtype, copy=False)
    from gguf import GGMLQuantizationType, quants

    return quants.quantize(values, GGMLQuantizationType.BF16).view(np.uint16).reshape(values.shape)


def _widened(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    return DenseTensor("", dtype, array).numpy()
