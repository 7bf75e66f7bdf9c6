"""A step's small input arrays packed into one, because every copy to the device has a fixed cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Layout", "pack"]

_ALIGN = 32  # words: arrays begin at multiples of 128 bytes, for wide loads


@dataclass(frozen=True)
class Layout:
    """Entries, one per array: name, index of its first word of 4 bytes, shape, and whether it holds floats."""

    entries: tuple[tuple[str, int, tuple[int, ...], bool], ...]

    def unpack(self, words: Tensor) -> dict[str, Tensor]:
        """Views of int32 words: int32 and float32 tensors by name."""
        found = {}
        for name, begin, shape, floats in self.entries:
            part = words[begin : begin + int(np.prod(shape))].view(shape)
            found[name] = part.view(torch.float32) if floats else part
        return found


def pack(arrays: Mapping[str, NDArray[Any]]) -> tuple[Layout, NDArray[np.int32]]:
    """Lay int32 and float32 arrays end to end, as int32 words."""
    entries, end = [], 0
    for name, array in arrays.items():
        entries.append((name, end, array.shape, array.dtype == np.float32))
        end += -(-array.size // _ALIGN) * _ALIGN
    words = np.zeros(end, np.int32)
    for (_, begin, _, _), array in zip(entries, arrays.values(), strict=True):
        assert array.dtype.itemsize == 4
        words[begin : begin + array.size] = np.ascontiguousarray(array).ravel().view(np.int32)
    return Layout(tuple(entries)), words
