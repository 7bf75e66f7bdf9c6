"""Integers and tables of a step for the kernels: cells at fixed addresses, filled from the StepPlan."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, Reads, StepPlan, first_visible
from mistral_portable.errors import BackendError
from mistral_portable.graph import Rotation
from mistral_portable_numba.layouts import PAGE_SIZE
from mistral_portable_numba.segments import SEGMENT, part_bytes, takes_all_heads, tokens_per_item

__all__ = ["StepValues"]

_CELLS = 256
_SEGMENT = SEGMENT * PAGE_SIZE  # positions
_AHEAD = 64  # positions whose angles are computed at a time: NumPy takes as long for them as for 18 one by one


class StepValues:
    """int64 cells whose addresses are arguments of kernels. A cell holds a count, or the address of an array."""

    def __init__(self, spec: CacheSpec) -> None:
        self._spec = spec
        self._cells = np.zeros(_CELLS, np.int64)
        self._index: dict[tuple[object, ...], int] = {}
        self._counts: list[tuple[int, Callable[[StepPlan], int]]] = []
        self._sources: list[tuple[int, Callable[[StepPlan], NDArray[np.generic]]]] = []
        self._rooms: list[tuple[int, Callable[[StepPlan], int]]] = []
        self._arrays: dict[int, NDArray[np.generic]] = {}
        self._copied: dict[int, NDArray[np.generic] | None] = {}  # what is in the arrays
        self._angles: dict[Rotation, _Angles] = {}

    @property
    def bytes(self) -> int:
        """Bytes of the cells and of the arrays that they point to."""
        arrays = [self._cells, *self._arrays.values(), *(angles.block for angles in self._angles.values())]
        return sum(array.nbytes for array in arrays)

    def count(self, rows: str) -> int:
        """The address of the cell with the number of tokens ("T") or of requested rows ("R")."""
        name = "tokens" if rows == "T" else "logit_rows"
        return self._cell(("count", rows), count=lambda plan: len(getattr(plan, name)))

    def tokens(self) -> int:
        """The address of the cell for the tokens, int32 [T]."""
        return self._cell(("tokens",), array=lambda plan: plan.tokens)

    def rows(self) -> int:
        """The address of the cell for the requested rows, int32 [R]."""
        return self._cell(("rows",), array=lambda plan: plan.logit_rows)

    def slots(self, layer: int) -> int:
        """The address of the cell for the slots that a layer's keys and values are written to, int32 [T]."""
        group = self._spec.group_of(layer)
        return self._cell(("slots", group), array=lambda plan: plan.groups[group].slot_mapping)

    def pages(self, layer: int) -> int:
        """The address of the cell for the pages that sequences read in a layer, int32 [S, P]."""
        group = self._spec.group_of(layer)
        return self._cell(("pages", group), array=lambda plan: plan.groups[group].pages)

    def angles(self, rotation: Rotation) -> int:
        """The address of the cell for the rotation's cosines and sines, float32 [T, 2, head_dim / 2]."""
        angles = self._angles.setdefault(rotation, _Angles(rotation))
        return self._cell(("angles", rotation), array=lambda plan: angles.of(plan.positions))

    def items(self, layer: int, sharing: int) -> tuple[int, int]:
        """The addresses of two cells: the number of a layer's work items of attention, and the items, int64 [n, 4].

        sharing: query heads per key/value head. An item is described at `attention_kernel`.
        """
        size, group = tokens_per_item(sharing), self._spec.group_of(layer)
        return (
            self._cell(("item count", sharing), count=lambda plan: _item_count(plan, size)),
            self._cell(("items", sharing, group), array=lambda plan: _items(plan, plan.groups[group], size)),
        )

    def parts(self, layer: int, heads: int, kv_heads: int, head_dim: int) -> int:
        """The address of the cell for memory for the parts of segments that attention merges (`kernels/attention.py`).

        They take a few hundredths of the memory of the keys and values of a layer.
        """
        size, group = tokens_per_item(heads // kv_heads), self._spec.group_of(layer)
        window = self._spec.groups[group].window

        def count(plan: StepPlan) -> int:
            return sum(
                _segments(position, tokens, window) * part_bytes(tokens, heads, kv_heads, head_dim)
                for _, tokens, position, _ in _items(plan, plan.groups[group], size)
                if takes_all_heads(tokens, heads)
            )

        return self._cell(("parts", group, heads, kv_heads, head_dim), room=count)

    def update(self, plan: StepPlan) -> None:
        """Fill the cells from a plan. The arrays keep their contents until the next call."""
        for index, count in self._counts:
            self._cells[index] = count(plan)
        for index, source in self._sources:
            self._put(index, source(plan))
        for index, size in self._rooms:
            self._make_room(index, size(plan))

    def shrink(self) -> None:
        """Drop the arrays, so that the next `update` allocates them for its own plan."""
        self._copied.clear()
        self._arrays.clear()

    def _cell(
        self,
        key: tuple[object, ...],
        *,
        count: Callable[[StepPlan], int] | None = None,
        array: Callable[[StepPlan], NDArray[np.generic]] | None = None,
        room: Callable[[StepPlan], int] | None = None,
    ) -> int:
        """The address of the cell `key`, which `count` or `array` fills from each plan. room: bytes for kernels to use.

        Raises BackendError if there are too many cells.
        """
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self._index)
            if index >= _CELLS:
                raise BackendError(f"backend 'numba' takes at most {_CELLS} kinds of windows and angles in one model")
            if count is not None:
                self._counts.append((index, count))
            if array is not None:
                self._sources.append((index, array))
            if room is not None:
                self._rooms.append((index, room))
        return int(self._cells[index:].ctypes.data)

    def _put(self, index: int, values: NDArray[np.generic]) -> None:
        """Copy values into the array of a cell, unless they are there: plans share what does not change.

        Reusing the array avoids looking up an address, which takes longer.
        """
        before = self._copied.get(index)
        if before is values:
            return
        self._copied[index] = None  # Ctrl-C may come at any point: then the next call makes another array
        size = values.size
        array = self._arrays.get(index)
        if array is None or array.size < size or before is None:
            array = self._arrays[index] = np.empty(size, values.dtype)
            self._cells[index] = array.ctypes.data
        array[:size] = values if values.ndim == 1 else values.reshape(-1)
        self._copied[index] = values

    def _make_room(self, index: int, size: int) -> None:
        """Let a cell point to so many bytes at least."""
        array = self._arrays.get(index)
        if array is None or array.size < size:
            array = self._arrays[index] = np.empty(size, np.uint8)
            self._cells[index] = array.ctypes.data


class _Angles:
    """A rotation's tables. One position's comes from a block with those that follow, as decoding goes on from there.

    Example: position 70 computes 70 to 133; 71 is a row of these, 140 begins another block.
    """

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation
        self._held = self._from(0)  # the first position, and the tables from there on

    @property
    def block(self) -> NDArray[np.float32]:
        """The tables that are held."""
        return self._held[1]

    def of(self, positions: NDArray[np.int32]) -> NDArray[np.float32]:
        """The tables of positions [T], float32 [T, 2, head_dim / 2]."""
        if len(positions) != 1:
            return self._rotation.table(positions)
        position = int(positions[0])
        first, block = self._held
        if not first <= position < first + _AHEAD:
            first, block = self._held = self._from(position)
        return block[position - first : position - first + 1]

    def _from(self, position: int) -> tuple[int, NDArray[np.float32]]:
        return position, self._rotation.table(np.arange(position, position + _AHEAD))


def _item_count(plan: StepPlan, size: int) -> int:
    """The number of work items of at most `size` tokens."""
    if len(plan.tokens) == len(plan.lanes):  # a token each
        return len(plan.lanes)
    starts = plan.query_starts.tolist()
    return sum(-(-(stop - start) // size) for start, stop in pairwise(starts))


def _segments(position: int, tokens: int, window: int | None) -> int:
    """The number of segments that tokens from a position on read."""
    return (position + tokens - 1) // _SEGMENT - first_visible(position, window) // _SEGMENT + 1


def _items(plan: StepPlan, reads: Reads, size: int) -> NDArray[np.int64]:
    """Each sequence's tokens in pieces of `size`, int64 [n, 4]: first token, tokens, position of the first, origin.

    Example: a sequence reads positions from 130 on, and its row of `reads.pages` begins at index 6: its origin is
    6 - 130 // 64 = 4, and position 200 lies in page `pages[4 + 200 // 64]`, the second of the row.
    """
    width, items = reads.pages.shape[1], []
    starts, oldest = plan.query_starts.tolist(), reads.first.tolist()
    for row, (start, stop) in enumerate(pairwise(starts)):
        before = int(plan.positions[start]) - start
        origin = row * width - oldest[row] // PAGE_SIZE
        for first in range(start, stop, size):
            items.append((first, min(size, stop - first), before + first, origin))
    return np.array(items, np.int64)
