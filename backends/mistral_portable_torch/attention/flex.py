"""FlexAttention: the mask is a function of positions, compiled into the kernel where there is a GPU."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mistral_portable_torch.attention.kernel import Pieces, Seen

__all__ = ["Flex"]


class Flex(Pieces):
    """On a GPU compiled, blocks of keys that no query sees are skipped; on a CPU in plain operations."""

    recordable = False  # the mask's blocks are made on the host

    def __init__(self, compiled: bool) -> None:
        self._attend: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, fixed: Hashable, integers: Mapping[str, Tensor], scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        for s, (tokens, seen) in enumerate(self.seen(fixed, integers)):
            heads = self._attend(
                q[None, tokens].transpose(1, 2),
                self.lane(keys, fixed, s)[None].transpose(1, 2),
                self.lane(values, fixed, s)[None].transpose(1, 2),
                block_mask=_block_mask(seen),
                scale=scale,
                enable_gqa=True,
            )
            out[tokens] = heads[0].transpose(0, 1)
        return out


def _block_mask(seen: Seen) -> Any:
    first, positions, held = seen.first, seen.positions, seen.held

    def visible(batch: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        return (held[slot] >= first[query]) & (held[slot] <= positions[query])

    return create_block_mask(visible, None, None, len(positions), len(held), device=held.device)
