"""JoinedTensor: tensors that a model-parallel checkpoint stores in pieces, one in each file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.weights.source import DenseTensor

__all__ = ["JoinedTensor"]


@dataclass(frozen=True, eq=False)
class JoinedTensor:
    """A tensor in pieces of one float type, which are concatenated along `axis` at each read.

    Example: two pieces (4, 8) are (8, 8) along axis 0 and (4, 16) along axis 1.
    """

    name: str
    pieces: Sequence[DenseTensor]
    axis: int
    order: NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the joined tensor."""
        sizes = list(self.pieces[0].shape)
        sizes[self.axis] = sum(piece.shape[self.axis] for piece in self.pieces)
        return tuple(sizes)

    @property
    def dtype(self) -> str:
        """The float type of the pieces."""
        return self.pieces[0].dtype

    @property
    def nbytes(self) -> int:
        """Size of all pieces in bytes."""
        return sum(piece.nbytes for piece in self.pieces)

    def joined(self) -> DenseTensor:
        """The whole tensor in memory, rows permuted."""
        array = np.concatenate([piece.array for piece in self.pieces], axis=self.axis)
        return DenseTensor(self.name, self.dtype, array if self.order is None else array[self.order])

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The joined values as a new array of the floating `dtype`."""
        return self.joined().numpy(dtype)

    def permute_rows(self, order: NDArray[np.intp]) -> "JoinedTensor":
        """The tensor whose row i is row `order[i]` of this one; applied when it is read."""
        return replace(self, order=order if self.order is None else self.order[order])
