"""BatchEncoding: the result of a tokenizer, lists or arrays by name, for `model(**inputs)` and `inputs.input_ids`."""

from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError

__all__ = ["BatchEncoding", "tensor_kind", "to_lists"]


class BatchEncoding(UserDict[str, Any]):
    """A dictionary whose entries are attributes too: `inputs.input_ids` is `inputs["input_ids"]`.

    >>> inputs = tokenizer(["Hello", "Once upon a time"], padding=True, return_tensors="np")
    >>> inputs.input_ids.shape, inputs.attention_mask[0].tolist()
    ((2, 5), [0, 0, 0, 1, 1])

    data: the entries. tensor_type: "np" (int64 arrays), "pt" (int64 torch tensors), "jax" or "tf" (int32, their
    default), or None: entries stay as they are. prepend_batch_axis: add an axis of length 1 in front of every entry
    that is converted.

    Raises InputError for rows of different lengths and for an unknown `tensor_type`; ImportError if torch, JAX or
    TensorFlow is requested and not installed.
    """

    def __init__(
        self, data: dict[str, Any] | None = None, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> None:
        super().__init__(data)
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> "BatchEncoding":
        """Convert every entry to arrays, in place, and return self; arguments and errors as in the class."""
        if tensor_type is None:
            return self
        kind = getattr(tensor_type, "value", tensor_type)
        if kind not in tuple(_MAKERS):
            raise InputError(f'return_tensors={kind!r} is none of "np", "pt", "jax" and "tf"; leave it out for lists')
        for name, value in self.data.items():
            self.data[name] = _array(name, [value] if prepend_batch_axis else value, kind)
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> "BatchEncoding":
        """Move torch tensors to a device, in place, and return self; other entries stay as they are.

        Raises TypeError if `device` is something else, such as a dtype: ids stay integers.
        """
        if not isinstance(device, str | int) and type(device).__name__ != "device":
            raise TypeError(f"{device!r} is no device; pass a torch.device, or its name or index")
        for name, value in self.data.items():
            if tensor_kind(value) == "pt":
                self.data[name] = value.to(device=device, non_blocking=non_blocking)
        return self

    def __getitem__(self, item: Any) -> Any:
        """The entry of this name; for a slice, these rows of all entries as a dictionary."""
        if isinstance(item, slice):
            return {name: value[item] for name, value in self.data.items()}
        return self.data[item]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name}") from None


def tensor_kind(value: Any) -> str | None:
    """The library of an array or of a list of arrays: "np", "pt", "jax" or "tf"; None for others. Imports none."""
    if isinstance(value, list | tuple) and value:
        return tensor_kind(value[0])
    if isinstance(value, np.ndarray):
        return "np"
    return _LIBRARIES.get(type(value).__module__.partition(".")[0])


def to_lists(value: Any) -> Any:
    """Convert arrays and tensors to nested lists of Python numbers; other values stay as they are."""
    if isinstance(value, list | tuple):
        return [to_lists(part) for part in value]
    if tensor_kind(value) == "tf":
        value = np.asarray(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _array(name: str, value: Any, kind: str) -> Any:
    if tensor_kind(value) == kind and not isinstance(value, list | tuple):
        return value
    lists = to_lists(value)
    if _ragged(lists):
        raise InputError(f"{name} has rows of different lengths, which make no array; pad them (padding=True)")
    try:
        return _MAKERS[kind](np.asarray(lists, np.int64))
    except ImportError as error:
        extra = {"pt": "torch"}.get(kind, kind)
        raise ImportError(f'return_tensors="{kind}" needs {error.name}; install mistral-portable[{extra}]') from error


def _ragged(value: Any) -> bool:
    parts = [part for part in value if isinstance(part, list)] if isinstance(value, list) else []
    return len({len(part) for part in parts}) > 1 or any(map(_ragged, parts))


def _torch(array: NDArray[np.int64]) -> Any:
    import torch

    return torch.from_numpy(array)


def _jax(array: NDArray[np.int64]) -> Any:
    import jax.numpy

    return jax.numpy.asarray(array, "int32")


def _tensorflow(array: NDArray[np.int64]) -> Any:
    import tensorflow

    return tensorflow.constant(array, "int32")


_MAKERS: dict[str, Callable[[NDArray[np.int64]], Any]] = {
    "np": lambda array: array,
    "pt": _torch,
    "jax": _jax,
    "tf": _tensorflow,
}
_LIBRARIES = {"torch": "pt", "jax": "jax", "jaxlib": "jax", "tensorflow": "tf"}
