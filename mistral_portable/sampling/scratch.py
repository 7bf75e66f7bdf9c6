"""Memory for intermediate results, which each thread uses again and again."""

import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["scratch"]

_SMALL = 1 << 14  # entries: a new array of fewer takes less time than finding the kept one


def scratch(size: int) -> NDArray[np.float64]:
    """Return a float64 array [size] of any content, which the thread's next call may return again.

    New memory of a whole vocabulary's size costs more than its numbers: the system hands it out page by page.
    """
    if size < _SMALL:
        return np.empty(size)
    if size > _own.numbers.size:
        _own.numbers = np.empty(size)
    return _own.numbers[:size]


class _Own(threading.local):
    def __init__(self) -> None:
        self.numbers = np.empty(0)


_own = _Own()
