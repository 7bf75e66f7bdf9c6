"""The protocol of attention kernels, and the part that those share which take one sequence at a time.

Below, T are the tokens of a step, S its sequences, N the slots of the pages that a sequence reads, h the query heads, g
the key/value heads, d is head_dim. A pool is [pages, page, g, d].
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mistral_portable_torch.reads import GroupReads, Integers

__all__ = ["Attention", "Piece", "Pieces", "Planned"]


Array = TypeVar("Array")


@dataclass(frozen=True)
class Planned(Generic[Array]):
    """A kernel's plan for the reads of a step.

    fixed: what a recorded step has baked in; another value needs another recording. arrays: integers that differ from
    step to step of one `fixed`, their shapes do not; on the host, and later on the device.
    """

    fixed: Hashable
    arrays: Mapping[str, Array]


class Attention(Protocol):
    """Softmax attention of ragged sequences over their pages."""

    @property
    def recordable(self) -> bool:
        """Whether the host's part of a step depends on `Planned.fixed` alone, so that a CUDA graph may hold it."""

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        """Plan on the host, once for all layers of a group.

        recorded: whether the step may be recorded: `fixed` then changes rarely while texts grow, and names no page.
        """

    def prepare(self, planned: Planned[Tensor]) -> Any:
        """Turn the plan into arrays on the device, such as masks, once for all layers of a group."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Any, scale: float) -> Tensor:
        """q [T, h, d], pools -> [T, h, d]"""


@dataclass(frozen=True)
class Piece:
    """A sequence: its tokens, the pages that it reads, in order of time, and what its queries see.

    first, positions [T of the sequence]: the oldest and the newest position that each query sees. held [N]: the
    position in each slot. pages: on the device; run: the same pages, if they follow each other in the pool.
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
        """[N, g, d]: a view where the pages follow each other, else a copy."""
        return (pool.index_select(0, self.pages) if self.run is None else pool[self.run]).flatten(0, 1)


@dataclass(frozen=True)
class _Fixed:
    """starts: as in GroupReads. columns: pages of each sequence. runs: the first one, if they follow each other."""

    starts: tuple[int, ...]
    columns: tuple[int, ...]
    runs: tuple[int | None, ...]
    page: int


class Pieces:
    """The plan of kernels that take sequence after sequence, whole pages of each, masked by position."""

    recordable = True

    def plan(self, reads: GroupReads, recorded: bool) -> Planned[Integers]:
        table, counts = reads.table(recorded), reads.counts.tolist()
        columns = tuple(reads.columns(count, recorded) for count in counts)
        runs = tuple(None if recorded else _run(own[:count].tolist()) for own, count in zip(table, counts, strict=True))
        return Planned(
            _Fixed(reads.starts, columns, runs, reads.page),
            {"first": reads.oldest, "positions": reads.plan.positions, "begins": reads.begins, "table": table},
        )

    def prepare(self, planned: Planned[Tensor]) -> list[Piece]:
        fixed, arrays = planned.fixed, planned.arrays
        assert isinstance(fixed, _Fixed)
        pieces = []
        for s, (columns, first) in enumerate(zip(fixed.columns, fixed.runs, strict=True)):
            tokens, begin = slice(fixed.starts[s], fixed.starts[s + 1]), arrays["begins"][s]
            held = begin + torch.arange(columns * fixed.page, dtype=torch.int32, device=begin.device)
            run = None if first is None else slice(first, first + columns)
            pages = arrays["table"][s, :columns]
            pieces.append(Piece(tokens, arrays["first"][tokens], arrays["positions"][tokens], held, pages, run))
        return pieces


def _run(pages: list[int]) -> int | None:
    """The first of pages that follow each other in the pool; None if they do not."""
    return pages[0] if pages == list(range(pages[0], pages[0] + len(pages))) else None
