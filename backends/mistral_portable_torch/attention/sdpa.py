"""torch's scaled_dot_product_attention with a mask: on any device."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mistral_portable_torch.attention.kernel import Piece, Pieces

__all__ = ["SDPA"]


class SDPA(Pieces):
    """Masks the pages of each sequence by position, with a boolean mask."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: list[Piece], scale: float) -> Tensor:
        out = torch.empty_like(q)
        for piece in prepared:
            heads = scaled_dot_product_attention(
                q[None, piece.tokens].transpose(1, 2),
                piece.of(keys)[None].transpose(1, 2),
                piece.of(values)[None].transpose(1, 2),
                attn_mask=piece.mask,
                scale=scale,
                enable_gqa=True,
            )
            out[piece.tokens] = heads[0].transpose(0, 1)
        return out
