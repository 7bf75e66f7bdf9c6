"""What a target file will hold, planned before anything is read: arrays under their names, read one at a time."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.weights import DenseTensor, JoinedTensor, Tensor, release

__all__ = ["FLOATS", "Part", "float_part", "forget", "is_float", "narrowest"]

FLOATS = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Names of the float types and their bytes."""


@dataclass(frozen=True)
class Part:
    """An array of a file: `read` gives it, of `nbytes` bytes, and `tensor` is what it is read from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], NDArray[Any]]
    tensor: Tensor


def float_part(name: str, tensor: Tensor, dtype: str) -> Part:
    """The values of a tensor in a float type, bfloat16 as uint16: the stored bits where it is of that type already."""
    return Part(name, dtype, tensor.shape, prod(tensor.shape) * FLOATS[dtype], lambda: _floats(tensor, dtype), tensor)


def is_float(tensor: Tensor) -> bool:
    """Whether the tensor is stored as plain floats."""
    return tensor.dtype in FLOATS


def narrowest(tensor: Tensor, dtype: str) -> str:
    """`dtype` if the tensor's values are the same in it, else the tensor's own type."""
    exact = np.array_equal(_widened(_floats(tensor, dtype), dtype), tensor.numpy(), equal_nan=True)
    return dtype if exact else tensor.dtype


def forget(tensor: Any) -> None:
    """Give back the pages of the file that a tensor is read from: arrays in its fields, and those of its tensors."""
    for value in (getattr(tensor, field.name) for field in dataclasses.fields(tensor)):
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, np.ndarray):
                release(item)
            elif dataclasses.is_dataclass(item):
                forget(item)


def _floats(tensor: Tensor, dtype: str) -> NDArray[Any]:
    if tensor.dtype == dtype:
        dense = tensor.joined() if isinstance(tensor, JoinedTensor) else tensor
        assert isinstance(dense, DenseTensor)
        return dense.raw()
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinite; the caller is told of rounding
            return tensor.numpy(np.dtype(dtype))
    from gguf import GGMLQuantizationType, quants

    return quants.quantize(tensor.numpy(), GGMLQuantizationType.BF16).view(np.uint16).reshape(tensor.shape)


def _widened(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    return DenseTensor("", dtype, array).numpy()
