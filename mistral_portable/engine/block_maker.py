"""Block maker for `load(quantize=...)`: gives the loader a backend's kernels, so that its blocks are `quantize`'s."""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, Quantizer
from mistral_portable.boundary.registry import select_quantizing
from mistral_portable.weights import DenseTensor
from mistral_portable.weights.quantize_on_read import BlockMaker

__all__ = ["block_maker"]


def block_maker(threads: int | None = None, progress: Callable[[str, int, int], None] | None = None) -> BlockMaker:
    """Return a function that makes ggml blocks on any backend's kernels, with equal importance for all columns.

    The first call compiles the kernels and starts their threads, and raises BackendError if no backend here makes
    blocks. The threads end with the last tensor that needs them.
    """
    options, lock = ExecutorOptions(threads=threads, progress=progress), threading.Lock()
    quantizers: dict[str, Quantizer] = {}

    def make(matrix: DenseTensor, type: str) -> NDArray[np.uint8]:
        with lock:
            if type not in quantizers:
                quantizers[type] = select_quantizing().quantizer([type], options)
            return quantizers[type].blocks(matrix, type, np.ones(matrix.shape[1], np.float32))

    return make
