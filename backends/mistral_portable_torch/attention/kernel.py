"""The protocol of attention kernels, and the planning of kernels that take one sequence at a time.

T: tokens of a step. S: its sequences. N: slots of the pages that a sequence reads. h: query heads. g: key/value heads.
d: head_dim. A pool is [pages, page_size, g, d].
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["Attention", "Piece", "Pieces", "Planned", "Sizes", "gathered_bytes"]


Array = TypeVar("Array")


@dataclass(frozen=True)
class Planned(Generic[Array]):
    """A kernel's plan for the reads of a step.

    fixed: values that a recorded step bakes in; other values need another recording. arrays: integers that may differ
    between steps of one `fixed`, while their shapes may not; first on the host, then on the device.
    """

    fixed: Hashable
    arrays: Mapping[str, Array]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a step on which its scratch depends.

    tokens: T. rows: R, of which logits are wanted. keys: slots that all its sequences read. longest: the most products
    of a sequence's tokens and slots. columns: of the page table, where each sequence has one token; else 0. page: slots
    of a page.
    """

    tokens: int
    rows: int
    keys: int
    longest: int
    columns: int
    page: int


class Attention(Protocol):
    """Softmax attention of ragged sequences over their pages."""

    @property
    def recordable(self) -> int:
        """The most tokens of a sequence in a step that a CUDA graph can replay: the host's work for it depends on
        `Planned.fixed` alone. 0: none can. Beyond 1 each token is planned as a sequence of its own."""

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        """Plan on the host, once for all layers of a group.

        recorded: whether the step may be recorded; `fixed` then changes rarely as texts grow, and has no page number.
        """

    def prepare(self, planned: Planned[Tensor]) -> Any:
        """Turn the plan into arrays on the device, such as masks, once for all layers of a group."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Any, scale: float) -> Tensor:
        """q [T, h, d], pools -> [T, h, d]"""

    def scratch_bytes(self, sizes: Sizes, heads: int, groups: int, head_dim: int, itemsize: int) -> int:
        """The most bytes that it takes at once in a step, beside its inputs and three times its result. itemsize:
        bytes of a number in the program's dtype."""


@dataclass(frozen=True)
class Piece:
    """One sequence of a step: its tokens, the pages that it reads, in order of time, and what its queries see.

    first, positions [tokens of the sequence]: the oldest and the newest position that each query sees. held [N]: the
    position in each slot. pages: page numbers, on the device. run: the same pages as a slice, if they are contiguous.
    """

    tokens: slice
    first: Tensor
    positions: Tensor
    held: Tensor
    pages: Tensor
    run: slice | None

    @cached_property
    def mask(self) -> Tensor:
        """bool [T, N]: whether each query sees the key in each slot."""
        return (self.held >= self.first[:, None]) & (self.held <= self.positions[:, None])

    def of(self, pool: Tensor) -> Tensor:
        """The sequence's keys or values, [N, g, d]: a view if its pages are contiguous, else a copy."""
        return (pool.index_select(0, self.pages) if self.run is None else pool[self.run]).flatten(0, 1)


@dataclass(frozen=True)
class _Fixed:
    """query_starts: as in GroupReads. columns: pages per sequence. runs: the first of them, if they are contiguous."""

    query_starts: tuple[int, ...]
    columns: tuple[int, ...]
    runs: tuple[int | None, ...]
    page: int


class Pieces(ABC):
    """Planning for kernels that take one sequence at a time, and mask its whole pages by position."""

    recordable = 1

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        table, counts = reads.table(recorded), reads.counts.tolist()
        columns = tuple(reads.columns(count, recorded) for count in counts)
        runs = tuple(None if recorded else _run(own[:count].tolist()) for own, count in zip(table, counts, strict=True))
        return Planned(
            _Fixed(reads.query_starts, columns, runs, reads.page),
            {"first": reads.oldest, "positions": reads.plan.positions, "begins": reads.begins, "table": table},
        )

    def prepare(self, planned: Planned[Tensor]) -> list[Piece]:
        fixed, arrays = planned.fixed, planned.arrays
        assert isinstance(fixed, _Fixed)
        pieces = []
        for s, (columns, first) in enumerate(zip(fixed.columns, fixed.runs, strict=True)):
            tokens, begin = slice(fixed.query_starts[s], fixed.query_starts[s + 1]), arrays["begins"][s]
            held = begin + torch.arange(columns * fixed.page, dtype=torch.int32, device=begin.device)
            run = None if first is None else slice(first, first + columns)
            pages = arrays["table"][s, :columns]
            pieces.append(Piece(tokens, arrays["first"][tokens], arrays["positions"][tokens], held, pages, run))
        return pieces

    def scratch_bytes(self, sizes: Sizes, heads: int, groups: int, head_dim: int, itemsize: int) -> int:
        return gathered_bytes(sizes, groups, head_dim, itemsize) + sizes.longest * self.score_bytes(heads, groups)

    @abstractmethod
    def score_bytes(self, heads: int, groups: int) -> int:
        """The most bytes of scores and masks, per query and key of one sequence, for all heads."""


def gathered_bytes(sizes: Sizes, groups: int, head_dim: int, itemsize: int) -> int:
    """Bytes of copies of all keys and values that a step reads."""
    return 2 * sizes.keys * groups * head_dim * itemsize


def _run(pages: list[int]) -> int | None:
    """The first page, if all are contiguous in the pool, else None."""
    return pages[0] if pages == list(range(pages[0], pages[0] + len(pages))) else None
