"""The protocol of attention kernels, and the part that those share which take one sequence at a time.

Below, T are the tokens of a step, S its sequences, N the keys of a lane, h the query heads, g the key/value heads, d is
head_dim. A pool is [pages, page, g, d].
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mistral_portable_torch.reads import Integers, Reads

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
    """Softmax attention of ragged sequences over their lanes."""

    @property
    def recordable(self) -> bool:
        """Whether the host's part of a step depends on `Planned.fixed` alone, so that a CUDA graph may hold it."""

    def plan(self, reads: Reads) -> Planned[Integers]:
        """Plan on the host, once for all layers of a group."""

    def prepare(self, planned: Planned[Tensor]) -> Any:
        """Turn the plan into arrays on the device, such as masks, once for all layers of a group."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Any, scale: float) -> Tensor:
        """q [T, h, d], pools -> [T, h, d]"""


@dataclass(frozen=True)
class Piece:
    """A sequence: its tokens, its lane's pages, and what its queries see.

    first, positions [T of the sequence]: the oldest and the newest position that each query sees. held [N]: the
    position in each slot, negative if there is none.
    """

    tokens: slice
    pages: tuple[int, ...]
    first: Tensor
    positions: Tensor
    held: Tensor

    @cached_property
    def mask(self) -> Tensor:
        """bool [T, N]: whether each query sees the key in each slot."""
        return (self.held >= self.first[:, None]) & (self.held <= self.positions[:, None])

    def lane(self, pool: Tensor) -> Tensor:
        """[N, g, d]: a view where the lane's pages follow each other, else a copy."""
        first, count = self.pages[0], len(self.pages)
        if self.pages == tuple(range(first, first + count)):
            return pool[first : first + count].flatten(0, 1)
        return torch.cat([pool[page] for page in self.pages])


@dataclass(frozen=True)
class _Fixed:
    starts: tuple[int, ...]
    pages: tuple[tuple[int, ...], ...]
    page: int
    ring: int


class Pieces:
    """The plan of kernels that take sequence after sequence, each lane as it lies, masked by position.

    Keys are cached after RoPE, so their order does not matter to a softmax.
    """

    recordable = True

    def plan(self, reads: Reads) -> Planned[Integers]:
        fixed = _Fixed(reads.starts, reads.pages, reads.page, reads.ring)
        return Planned(fixed, {"first": reads.oldest, "positions": reads.positions, "last": reads.ends - 1})

    def prepare(self, planned: Planned[Tensor]) -> list[Piece]:
        fixed, arrays = planned.fixed, planned.arrays
        assert isinstance(fixed, _Fixed)
        pieces = []
        for s, (begin, end) in enumerate(zip(fixed.starts, fixed.starts[1:], strict=False)):
            tokens, last = slice(begin, end), arrays["last"][s]
            # The latest position congruent to the slot: of a ring of 5 with last 5, 5 1 2 3 4.
            slots = torch.arange(len(fixed.pages[s]) * fixed.page, dtype=torch.int32, device=last.device)
            held = last - (last - slots) % fixed.ring
            pieces.append(Piece(tokens, fixed.pages[s], arrays["first"][tokens], arrays["positions"][tokens], held))
        return pieces
