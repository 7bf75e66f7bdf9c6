"""Arrays of the caller's library: NumPy, torch, MLX, JAX or TensorFlow, none of which is imported here."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError

__all__ = ["Library", "as_numpy", "checked_bool", "integers", "library_of"]


@dataclass(frozen=True)
class Library:
    """An array library. make: turns a NumPy array into the library's, without a copy where they can share memory."""

    name: str
    make: Callable[[NDArray[Any]], Any]


def library_of(*arrays: Any) -> Library:
    """The library of the first array that belongs to one; NumPy if all are lists and numbers."""
    for array in arrays:
        name = type(array).__module__.partition(".")[0]
        if name == "torch":
            return Library("torch", _on(array.device))
        if name == "mlx":
            return Library("mlx", sys.modules["mlx.core"].array)
        if name == "tensorflow":
            return Library("tensorflow", sys.modules["tensorflow"].constant)
        if name in ("jax", "jaxlib"):
            return Library("jax", sys.modules["jax"].numpy.asarray)
    return Library("numpy", lambda made: made)


def integers(name: str, array: Any, shape: tuple[int, ...] | None = None) -> NDArray[np.int64]:
    """The array as int64. Raises InputError, naming `name`, if it holds no integers or its shape is not `shape`."""
    found = as_numpy(name, array)
    if found.dtype.kind not in "iub":
        raise InputError(f"{name} is {found.dtype}: pass integers")
    if shape is not None and found.shape != shape:
        raise InputError(f"{name} has the shape {list(found.shape)}, not {list(shape)}")
    return found.astype(np.int64)


def checked_bool(name: str, value: Any) -> bool:
    """The value as a bool. Raises InputError, naming `name`, if it is not a bool."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is a {type(value).__name__}: pass True or False")
    return bool(value)


def as_numpy(name: str, array: Any, dims: int | None = None) -> NDArray[Any]:
    """Convert an array of any library, or nested lists, to NumPy; bfloat16 becomes float32.

    Raises InputError, naming `name`, if rows differ in length or the array does not have `dims` axes.
    """
    if type(array).__module__.partition(".")[0] == "torch":
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    elif str(getattr(array, "dtype", "")) == "mlx.core.bfloat16":  # NumPy has no bfloat16
        array = array.astype(sys.modules["mlx.core"].float32)
    try:
        found = np.asarray(array)
    except ValueError as error:
        raise InputError(f"{name}: rows of different lengths: pad them, as the tokenizer does") from error
    if found.dtype.name == "bfloat16":  # JAX and TensorFlow register a dtype that NumPy's functions do not know
        found = found.astype(np.float32)
    if dims is not None and found.ndim != dims:
        raise InputError(f"{name} has the shape {list(found.shape)}: pass {dims} axes")
    return found


def _on(device: Any) -> Callable[[NDArray[Any]], Any]:
    return lambda made: sys.modules["torch"].from_numpy(np.asarray(made)).to(device)
