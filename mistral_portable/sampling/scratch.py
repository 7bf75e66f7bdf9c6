"""Memory for intermediate results of a whole vocabulary's size, which each thread uses again and again."""

import threading
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["scratch"]

Float = TypeVar("Float", np.float32, np.float64)

_SMALL = 1 << 14  # entries: a new array of fewer takes less time than finding the kept one


def scratch(size: int, dtype: type[Float]) -> NDArray[Float]:
    """Return an array [size] of any content; the thread's next call for the dtype may return the same memory.

    Where an allocator gives large arrays back to the system at once, the pages of new ones take longer than the
    arithmetic: 16 rows of 131072 with temperature took 25 ms so, and 8 ms with kept arrays (glibc, fixed thresholds).
    """
    if size < _SMALL:
        return np.empty(size, dtype)
    kept = _own.arrays.get(dtype)
    if kept is None or kept.size < size:
        kept = _own.arrays[dtype] = np.empty(size, dtype)
    return kept[:size]


class _Own(threading.local):
    def __init__(self) -> None:
        self.arrays: dict[type, NDArray[Any]] = {}


_own = _Own()
