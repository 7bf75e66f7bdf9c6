"""MergedTensor: a weight with the changes of adapters, which are added as it is read."""

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.adapters.adapter import LowRank
from mistral_portable.errors import InputError
from mistral_portable.weights import Tensor

__all__ = ["MergedTensor"]

_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SLICE = 2**20  # values of a change that are computed together


@dataclass(frozen=True, eq=False)
class MergedTensor:
    """`base + scale * up @ down` for each of the changes, in float32, in their order.

    dtype: the type in which it is written; "q4_0" and others of `Tensor.dtype` if the base is packed.
    changes: as those of linear layers, also for the embedding table (`LowRank.transposed`).
    """

    name: str
    dtype: str
    base: Tensor
    changes: tuple[LowRank, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the base."""
        return self.base.shape

    @property
    def nbytes(self) -> int:
        """Size in bytes, of floats in its type; that of the base if this is packed."""
        return prod(self.shape) * _SIZES[self.dtype] if self.dtype in _SIZES else self.base.nbytes

    def numpy(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The sum as a new array of the floating `dtype`, not rounded to the type of this tensor.

        Raises InputError if it is not finite.
        """
        values = self.base.numpy()
        step = max(1, _SLICE // values.shape[1])
        for part in (slice(begin, begin + step) for begin in range(0, len(values), step)):
            values[part] = self.changed(values[part], part)
        return values.astype(dtype, copy=False)

    def changed(self, rows: NDArray[np.float32], part: slice) -> NDArray[np.float32]:
        """The sum for a range of rows. rows: those of the base. Raises InputError if it is not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            for change in self.changes:
                update = change.up.rows(part).numpy() @ change.down.numpy()
                update *= np.float32(change.scale)
                rows = rows + update
            largest = 65504.0 if self.dtype == "float16" else np.finfo(np.float32).max
            fits = bool((np.abs(rows) <= largest).all())
        if not fits:
            raise InputError(
                f"{self.name}: the merged values are too large for {self.dtype}; merge with a smaller scale"
            )
        return rows

    def permute_rows(self, order: NDArray[np.intp]) -> "MergedTensor":
        """The tensor whose row i is row `order[i]` of this one; applied as it is read."""
        changes = tuple(change.permute_rows(order) for change in self.changes)
        return replace(self, base=self.base.permute_rows(order), changes=changes)
