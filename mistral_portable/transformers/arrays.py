"""Arrays of the user's library: NumPy, torch, MLX, JAX, TensorFlow; each in, the same out. None is imported here."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError

__all__ = ["Library", "as_numpy", "integers", "library_of", "truth"]


@dataclass(frozen=True)
class Library:
    """make: an array of it from NumPy's, without a copy where the library can share memory."""

    name: str
    make: Callable[[NDArray[Any]], Any]


def library_of(*arrays: Any) -> Library:
    """Of the first of these that belongs to one; NumPy for lists and numbers."""
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
    """Whole numbers, of that shape if one is given. Raises InputError, which says `name`."""
    found = as_numpy(name, array)
    if found.dtype.kind not in "iub":
        raise InputError(f"{name} is {found.dtype}: pass integers")
    if shape is not None and found.shape != shape:
        raise InputError(f"{name} has the shape {list(found.shape)}, not {list(shape)}")
    return found.astype(np.int64)


def truth(name: str, value: Any) -> bool:
    """A truth value. Raises InputError, which says `name`, for what is none."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is a {type(value).__name__}: pass True or False")
    return bool(value)


def as_numpy(name: str, array: Any, dims: int | None = None) -> NDArray[Any]:
    """A NumPy array of anything that is like one. Raises InputError, which says `name`, if it has not `dims` axes."""
    if type(array).__module__.partition(".")[0] == "torch":
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    elif str(getattr(array, "dtype", "")) == "mlx.core.bfloat16":  # NumPy has no such type
        array = array.astype(sys.modules["mlx.core"].float32)
    try:
        found = np.asarray(array)
    except ValueError as error:
        raise InputError(f"{name}: rows of different lengths: pad them, as the tokenizer does") from error
    if found.dtype.name == "bfloat16":  # of JAX and TensorFlow, as a type that is none of NumPy's
        found = found.astype(np.float32)
    if dims is not None and found.ndim != dims:
        raise InputError(f"{name} has the shape {list(found.shape)}: pass {dims} axes")
    return found


def _on(device: Any) -> Callable[[NDArray[Any]], Any]:
    return lambda made: sys.modules["torch"].from_numpy(np.asarray(made)).to(device)
