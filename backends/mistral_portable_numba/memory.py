"""Memory in huge pages, out of which cores read faster. NumPy asks Linux for them (for zeros since NumPy 2.2)."""

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["HUGE_PAGE", "in_huge_pages"]

HUGE_PAGE = 2**21
"""Bytes of a huge page on x86, and on ARM where small ones have 4 KiB."""


def in_huge_pages(shape: tuple[int, ...], *, zeros: bool = False) -> NDArray[np.uint8]:
    """An array of bytes that begins with a huge page, so that all but its last 2 MiB can be in huge pages.

    malloc's memory begins anywhere: of 9 MiB, 6 or 8 lie in huge pages then. An array of less than a huge page begins
    anywhere, too. zeros: whether it is filled with zeros. Raises MemoryError.
    """
    make: Callable[..., NDArray[np.uint8]] = np.zeros if zeros else np.empty
    size = prod(shape)
    if size < HUGE_PAGE:
        return make(shape, np.uint8)
    memory = make(size + HUGE_PAGE, np.uint8)  # 4 MiB at least, from which on NumPy asks for huge pages
    begin = -memory.ctypes.data % HUGE_PAGE
    return memory[begin : begin + size].reshape(shape)
