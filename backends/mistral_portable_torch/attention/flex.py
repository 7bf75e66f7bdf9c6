"""FlexAttention: the mask is a function of positions, which is compiled into the kernel on a GPU."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mistral_portable_torch.attention.kernel import Piece, Pieces, Planned

__all__ = ["Flex"]


class Flex(Pieces):
    """Compiled on a GPU, where blocks of keys that no query sees are skipped; plain operations on a CPU."""

    recordable = 0  # the host makes the mask's blocks

    def __init__(self, compiled: bool) -> None:
        self._attend: Any = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention

    def prepare(self, planned: Planned[Tensor]) -> Any:
        return [(piece, _block_mask(piece)) for piece in super().prepare(planned)]

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: Any, scale: float) -> Tensor:
        out = torch.empty_like(q)
        for piece, mask in prepared:
            heads = self._attend(
                q[None, piece.tokens].transpose(1, 2),
                piece.of(keys)[None].transpose(1, 2),
                piece.of(values)[None].transpose(1, 2),
                block_mask=mask,
                scale=scale,
                enable_gqa=True,
            )
            out[piece.tokens] = heads[0].transpose(0, 1)
        return out

    def score_bytes(self, heads: int, groups: int) -> int:
        return 16 * heads + 3  # where it is not compiled


def _block_mask(piece: Piece) -> Any:
    first, positions, held = piece.first, piece.positions, piece.held

    def visible(batch: Tensor, head: Tensor, query: Tensor, slot: Tensor) -> Tensor:
        position = held[slot]
        return (position >= first[query]) & (position <= positions[query])

    return create_block_mask(visible, None, None, len(positions), len(held), device=held.device)
