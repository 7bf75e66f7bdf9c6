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
    """A maker of ggml blocks, for the types that it was prepared for. Not safe for concurrent calls."""

    def blocks(self, rows: DenseTensor, type: str, importance: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Quantize a matrix: uint8 [rows, bytes_per_row].

        Each block minimizes, as far as the search goes, the sum of importance * (x - quantized x)^2 over its columns;
        `importance` is float32 [columns]. A row's blocks do not depend on other rows.

        type: a ggml type such as "q4_k"; its blocks fill the rows. Raises CheckpointError, with the tensor's name, if a
        number is not finite, or larger than the type can hold.
        """

    def close(self) -> None:
        """Release its threads; later calls raise ClosedError."""


@runtime_checkable
class QuantizingBackend(Backend, Protocol):
    """A backend that also makes ggml blocks, for `quantize` and for `load(quantize=...)`."""

    def quantizer(self, types: Collection[str], options: ExecutorOptions) -> Quantizer:
        """Prepare a Quantizer for these ggml types; only the options `threads` and `progress` are used."""
