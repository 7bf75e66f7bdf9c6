"""Quantizer: makes ggml blocks of float matrices, on a backend's kernels."""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary.backend import Backend
from mistral_portable.boundary.options import ExecutorOptions
from mistral_portable.weights import DenseTensor

__all__ = ["Quantizer", "QuantizingBackend"]


class Quantizer(Protocol):
    """Makes ggml blocks of floats, of the types that it was made for. Not safe for concurrent calls."""

    def blocks(self, rows: DenseTensor, type: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
        """uint8 [rows, bytes_per_row], as close to `rows` as it can: what is small is the sum over each block of
        `importance`, float32 [columns], times the squared error. A row's blocks do not depend on other rows.

        type: a ggml type such as "q4_k"; its blocks fill the rows. Raises CheckpointError, with the tensor's name, if a
        number is not finite, or larger than the type can hold.
        """

    def close(self) -> None:
        """Release its threads; it makes no blocks afterwards."""


@runtime_checkable
class QuantizingBackend(Backend, Protocol):
    """A backend that also makes ggml blocks: `quantize` asks for it, and `load` for what is quantized as it is read."""

    def quantizer(self, types: Collection[str], options: ExecutorOptions) -> Quantizer:
        """For these types; of the options `threads` and `progress` count."""
