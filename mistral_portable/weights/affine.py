"""AffineTensor: matrices in MLX's affine groups, weight = scale * code + bias, with a scale and a bias per group."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.weights.packed import bit_fields
from mistral_portable.weights.source import DenseTensor

__all__ = ["BITS", "GROUP_SIZES", "AffineTensor"]

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, eq=False)
class AffineTensor:
    """A matrix as `mlx_lm.convert` stores it: the codes of a row, `bits` bits each, are packed from the lowest bits on.

    Example: shape (8, 128) with 4 bits in groups of 64 has `packed` (8, 16), `scales` and `biases` (8, 2).
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    group_size: int
    packed: NDArray[np.uint32]
    """[rows, columns * bits / 32], usually a view of the mapped file."""
    scales: DenseTensor
    """[rows, columns / group_size]; `biases` has the same shape."""
    biases: DenseTensor
    order: NDArray[np.intp] | None = None

    @property
    def dtype(self) -> str:
        """The type: "affine_4bit", with the number of bits."""
        return f"affine_{self.bits}bit"

    @property
    def nbytes(self) -> int:
        """Size of codes, scales and biases in bytes."""
        return self.packed.nbytes + self.scales.nbytes + self.biases.nbytes

    def codes(self) -> NDArray[np.uint32]:
        """Packed codes, uint32 [rows, columns * bits / 32]; a read-only view of the file unless rows are permuted."""
        if self.order is not None:
            return self.packed[self.order]
        return np.require(self.packed, requirements="A")

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """Unpacked values of `shape`, computed in float32 whatever the dtype of the scales."""
        rows, columns = self.shape
        groups = bit_fields(self.codes(), self.bits).reshape(rows, -1, self.group_size).astype(np.float32)
        values: NDArray[Any] = groups * self.scales.numpy()[..., None] + self.biases.numpy()[..., None]
        return values.reshape(rows, columns).astype(dtype, copy=False)

    def permute_rows(self, order: NDArray[np.intp]) -> Self:
        """The matrix whose row i is row `order[i]` of this one; applied when it is read."""
        return replace(
            self,
            scales=self.scales.permute_rows(order),
            biases=self.biases.permute_rows(order),
            order=order if self.order is None else self.order[order],
        )
