"""What a tokenizer returns: names to lists or arrays, usable as `model(**inputs)` and `inputs.input_ids`."""

from collections import UserDict
from typing import Any

import numpy as np

from mistral_portable.errors import InputError

__all__ = ["BatchEncoding", "tensor_kind", "to_lists"]


class BatchEncoding(UserDict[str, Any]):
    """A dictionary whose entries are attributes too: `inputs.input_ids` is `inputs["input_ids"]`.

    >>> inputs = tokenizer(["Hello", "Once upon a time"], padding=True, return_tensors="np")
    >>> inputs.input_ids.shape, inputs.attention_mask[0].tolist()
    ((2, 5), [0, 0, 0, 1, 1])

    Args:
        data: The entries.
        tensor_type: "np" (int64 arrays), "pt" (int64 torch tensors) or None: lists, as given.
        prepend_batch_axis: Whether every entry gets an axis of length 1 in front, if `tensor_type` is given.

    Raises:
        ValueError: Rows of different lengths cannot make an array, or there is no such `tensor_type`.
        ImportError: torch is not installed.
    """

    def __init__(
        self, data: dict[str, Any] | None = None, tensor_type: str | None = None, prepend_batch_axis: bool = False
    ) -> None:
        super().__init__(data)
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> "BatchEncoding":
        """Turn every entry into an array of the kind, in place, and return self; see the class."""
        if tensor_type is None:
            return self
        kind = getattr(tensor_type, "value", tensor_type)
        if kind not in ("np", "pt"):
            raise InputError(f'return_tensors={kind!r} is none of "np" and "pt"; leave it out for lists')
        for name, value in self.data.items():
            self.data[name] = _array(name, [value] if prepend_batch_axis else value, kind)
        return self

    def to(self, device: Any, *, non_blocking: bool = False) -> "BatchEncoding":
        """Move the torch tensors to a device, in place, and return self; lists and NumPy's arrays stay as they are.

        Raises:
            TypeError: `device` is something else, such as a dtype: ids stay integers.
        """
        if not isinstance(device, str | int) and type(device).__name__ != "device":
            raise TypeError(f"{device!r} is no device; pass a torch.device, or its name or index")
        for name, value in self.data.items():
            if tensor_kind(value) == "pt":
                self.data[name] = value.to(device=device, non_blocking=non_blocking)
        return self

    def __getitem__(self, item: Any) -> Any:
        """The entry of this name, or for a slice these rows of all entries."""
        if isinstance(item, slice):
            return {name: value[item] for name, value in self.data.items()}
        return self.data[item]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(f"the encoding has no {name}") from None


def tensor_kind(value: Any) -> str | None:
    """ "np" or "pt" for an array, or a list of arrays; else None. Imports no framework."""
    if isinstance(value, list | tuple) and value:
        return tensor_kind(value[0])
    if isinstance(value, np.ndarray):
        return "np"
    return "pt" if type(value).__module__.partition(".")[0] == "torch" else None


def to_lists(value: Any) -> Any:
    """Arrays and tensors as (nested) lists of Python numbers; everything else as it is."""
    if isinstance(value, list | tuple):
        return [to_lists(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _array(name: str, value: Any, kind: str) -> Any:
    if tensor_kind(value) == kind and not isinstance(value, list | tuple):
        return value
    lists = to_lists(value)
    if _ragged(lists):
        raise InputError(f"{name} has rows of different lengths, which make no array; pad them (padding=True)")
    if kind == "np":
        return np.asarray(lists, np.int64)
    try:
        import torch
    except ImportError as error:
        raise ImportError('return_tensors="pt" needs torch; install mistral-portable[torch]') from error
    return torch.tensor(lists, dtype=torch.int64)


def _ragged(value: Any) -> bool:
    parts = [part for part in value if isinstance(part, list)] if isinstance(value, list) else []
    return len({len(part) for part in parts}) > 1 or any(map(_ragged, parts))
