"""A step's small input arrays packed into one, because every copy to the device has a fixed cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Layout", "pack"]

_DTYPES = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32, "float64": torch.float64}
_ALIGN = 32  # words: arrays begin at multiples of 128 bytes, for wide loads


@dataclass(frozen=True)
class Layout:
    """Entries, one per array: name, index of its first word of 4 bytes, shape, and dtype."""

    entries: tuple[tuple[str, int, tuple[int, ...], torch.dtype], ...]

    def unpack(self, words: Tensor) -> dict[str, Tensor]:
        """Views of int32 words: int32, int64, float32 and float64 tensors by name."""
        found = {}
        for name, begin, shape, dtype in self.entries:
            size = int(np.prod(shape)) * (dtype.itemsize // words.itemsize)
            found[name] = words[begin : begin + size].view(dtype).view(shape)
        return found


def pack(arrays: Mapping[str, NDArray[Any]]) -> tuple[Layout, NDArray[np.int32]]:
    """Lay int32, int64, float32 and float64 arrays end to end, as int32 words."""
    entries, end = [], 0
    flat = [np.ascontiguousarray(array).ravel().view(np.int32) for array in arrays.values()]
    for (name, array), own in zip(arrays.items(), flat, strict=True):
        entries.append((name, end, array.shape, _DTYPES[array.dtype.name]))
        end += -(-own.size // _ALIGN) * _ALIGN
    words = np.zeros(end, np.int32)
    for (_, begin, _, _), own in zip(entries, flat, strict=True):
        words[begin : begin + own.size] = own
    return Layout(tuple(entries)), words
