"""The integers and tables of a step, where the tape finds them: cells at fixed addresses, filled from the StepPlan."""

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError
from mistral_portable_numba.layouts import tokens_per_item

__all__ = ["StepValues"]

_CELLS = 256


class StepValues:
    """Cells (int64) that the tape's arguments point to. A cell holds a count, or the address of an array."""

    def __init__(self, spec: CacheSpec) -> None:
        self._spec = spec
        self._cells = np.zeros(_CELLS, np.int64)
        self._index: dict[tuple[object, ...], int] = {}
        self._frequencies: dict[tuple[int, float], NDArray[np.float64]] = {}
        self._arrays: dict[int, NDArray[np.generic]] = {}

    def count(self, rows: str) -> int:
        """The address of the cell that counts the tokens ("T") or the asked rows ("R")."""
        return self._cell("count", rows)

    def rows(self) -> int:
        """Of the cell for the asked rows, int32 [R]."""
        return self._cell("rows")

    def lanes(self) -> int:
        """Of the cell for the tokens' lanes, int32 [T]."""
        return self._cell("lanes")

    def slots(self, layer: int) -> int:
        """Of the cell for the slots that a layer's keys and values go to, int32 [T]."""
        return self._cell("slots", self._spec.group_of(layer))

    def angles(self, head_dim: int, theta: float) -> int:
        """Of the cell for cosines and sines, float32 [T, 2, head_dim / 2]."""
        half = head_dim // 2
        self._frequencies[head_dim, theta] = float(theta) ** (-np.arange(half, dtype=np.float64) / half)
        return self._cell("angles", head_dim, theta)

    def items(self, group: int) -> tuple[int, int]:
        """Of the cells for the number of attention's work items and for the items, int64 [n, 5] (see its kernel)."""
        return self._cell("item count", group), self._cell("items", group)

    def update(self, plan: StepPlan) -> None:
        """Fill the cells. What they point to stays as it is until the next call."""
        for key, index in self._index.items():
            match key:
                case ("count", rows):
                    self._cells[index] = len(plan.tokens) if rows == "T" else len(plan.rows)
                case ("rows",):
                    self._put(index, plan.rows)
                case ("lanes",):
                    alone = len(plan.lanes) == len(plan.tokens)  # one token each, as in decoding
                    self._put(index, plan.lanes if alone else np.repeat(plan.lanes, np.diff(plan.starts)))
                case ("slots", int(group)):
                    self._put(index, plan.groups[group].slots)
                case ("angles", int(head_dim), float(theta)):
                    self._put(index, _angles(plan.positions, self._frequencies[head_dim, theta]))
                case ("items", int(group)):
                    items = _items(plan, tokens_per_item(group))
                    self._put(index, items)
                    self._cells[self._index["item count", group]] = len(items)

    def _cell(self, *key: object) -> int:
        index = self._index.setdefault(key, len(self._index))
        if index >= _CELLS:
            raise BackendError(f"backend 'numba' takes at most {_CELLS} kinds of windows and angles in one model")
        return int(self._cells[index:].ctypes.data)

    def _put(self, index: int, values: NDArray[np.generic]) -> None:
        """Copy to where the values of this cell lie: to find out the address of an array takes longer."""
        size = values.size
        array = self._arrays.get(index)
        if array is None or array.size < size:
            array = self._arrays[index] = np.empty(size, values.dtype)
            self._cells[index] = array.ctypes.data
        array[:size] = values.reshape(-1)


def _angles(positions: NDArray[np.int32], frequencies: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cosines and sines, computed in float64, as positions may be large."""
    angles = positions[:, None] * frequencies
    turns = np.empty((len(positions), 2, len(frequencies)), np.float32)
    turns[:, 0], turns[:, 1] = np.cos(angles), np.sin(angles)
    return turns


def _items(plan: StepPlan, size: int) -> NDArray[np.int64]:
    """Each sequence's tokens in pieces of `size`: lane, first token, tokens, its position, the sequence's last one."""
    items = []
    for lane, start, stop in zip(plan.lanes.tolist(), plan.starts.tolist(), plan.starts[1:].tolist(), strict=False):
        position = int(plan.positions[start])
        for first in range(start, stop, size):
            last = position + stop - start - 1
            items.append((lane, first, min(size, stop - first), position + first - start, last))
    return np.array(items, np.int64)
