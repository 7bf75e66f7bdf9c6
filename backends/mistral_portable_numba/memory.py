"""Memory that the system holds in huge pages (NumPy asks Linux for them), out of which cores read faster."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HUGE_PAGE", "in_huge_pages"]

HUGE_PAGE = 2**21
"""Bytes of a huge page on x86, and on ARM where small ones have 4 KiB."""


def in_huge_pages(shape: tuple[int, ...], *, zeros: bool = False) -> NDArray[np.uint8]:
    """An array of bytes that begins with a huge page, so that all but its last 2 MiB can be in huge pages.

    malloc's own memory for 9 MB begins anywhere: then 6 or 8 MiB of them are. Arrays of less than a huge page begin
    anywhere. zeros: whether it is filled with zeros. Raises MemoryError.
    """
    make: Any = np.zeros if zeros else np.empty
    size = int(np.prod(shape, dtype=object))
    if size < HUGE_PAGE:
        return np.asarray(make(shape, np.uint8))
    memory = make(size + HUGE_PAGE, np.uint8)
    begin = -memory.ctypes.data % HUGE_PAGE
    return np.asarray(memory[begin : begin + size].reshape(shape))
