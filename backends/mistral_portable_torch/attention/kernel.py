"""The protocol of attention kernels, and the part that those share which take one sequence at a time.

Below, T are the tokens of a step, S its sequences, N the keys of a lane, h the query heads, g the key/value heads, d is
head_dim. A pool is [pages, page, g, d].
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mistral_portable_torch.reads import Integers, Reads

__all__ = ["Attention", "Pieces", "Planned", "Seen"]


@dataclass(frozen=True)
class Planned:
    """What a kernel makes of a step's reads.

    fixed: what a captured step has baked in; another value needs another capture. integers: what differs from step to
    step of one `fixed`; their shapes follow from it.
    """

    fixed: Hashable
    integers: Mapping[str, Integers]


class Attention(Protocol):
    """Softmax attention of ragged sequences over their lanes."""

    @property
    def recordable(self) -> bool:
        """Whether `attend` does nothing on the host but on `fixed`, so that a CUDA graph may hold it."""

    def plan(self, reads: Reads) -> Planned:
        """On the host, once for all layers of a group."""

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, fixed: Hashable, integers: Mapping[str, Tensor], scale: float
    ) -> Tensor:
        """q [T, h, d], pools -> [T, h, d]. fixed, integers: of `plan`, the latter on the device."""


@dataclass(frozen=True)
class Seen:
    """first, positions [T of the sequence]: the oldest and the newest position that each query sees.

    held [N]: the position in each slot, negative if there is none.
    """

    first: Tensor
    positions: Tensor
    held: Tensor

    @property
    def mask(self) -> Tensor:
        """bool [T, N]: whether each query sees the key in each slot."""
        return (self.held >= self.first[:, None]) & (self.held <= self.positions[:, None])


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

    def plan(self, reads: Reads) -> Planned:
        fixed = _Fixed(reads.starts, reads.pages, reads.page, reads.ring)
        return Planned(fixed, {"first": reads.oldest, "positions": reads.positions, "last": reads.ends - 1})

    def seen(self, fixed: Hashable, integers: Mapping[str, Tensor]) -> list[tuple[slice, Seen]]:
        """Of each sequence its tokens, and what they see of its lane."""
        assert isinstance(fixed, _Fixed)
        found = []
        for s, (begin, end) in enumerate(zip(fixed.starts, fixed.starts[1:], strict=False)):
            tokens = slice(begin, end)
            first, positions, last = integers["first"][tokens], integers["positions"][tokens], integers["last"][s]
            # The latest position congruent to the slot: of a ring of 5 with last 5, 5 1 2 3 4.
            slots = torch.arange(len(fixed.pages[s]) * fixed.page, dtype=torch.int32, device=last.device)
            found.append((tokens, Seen(first, positions, last - (last - slots) % fixed.ring)))
        return found

    def lane(self, pool: Tensor, fixed: Hashable, sequence: int) -> Tensor:
        """[N, g, d]: a view where the lane's pages follow each other, else a copy."""
        assert isinstance(fixed, _Fixed)
        pages = fixed.pages[sequence]
        if pages == tuple(range(pages[0], pages[0] + len(pages))):
            return pool[pages[0] : pages[0] + len(pages)].flatten(0, 1)
        return torch.cat([pool[page] for page in pages])
