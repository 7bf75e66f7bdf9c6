"""Attention in plain torch operations, in float32: the only kernel that can return attention weights."""

import torch
from torch import Tensor

from mistral_portable_torch.attention.kernel import Piece, Pieces

__all__ = ["Eager"]


class Eager(Pieces):
    """Runs on any device, in any float type, with any head_dim."""

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, prepared: list[Piece], scale: float) -> Tensor:
        out = torch.empty_like(q)
        for piece in prepared:
            weights = _softmax(q, keys, piece, scale)
            heads = torch.einsum("gntk,kgd->tgnd", weights, piece.of(values).float())
            out[piece.tokens] = heads.flatten(1, 2).to(q.dtype)
        return out

    def score_bytes(self, heads: int, groups: int) -> int:
        return 12 * heads + 3  # float32, three times; masks

    def weights(self, q: Tensor, keys: Tensor, prepared: list[Piece], scale: float) -> list[Tensor]:
        """Attention weights of each sequence, float32 [T, h, N], in order of slots."""
        return [_softmax(q, keys, piece, scale).flatten(0, 1).transpose(0, 1) for piece in prepared]


def _softmax(q: Tensor, keys: Tensor, piece: Piece, scale: float) -> Tensor:
    """Attention weights of one sequence, [g, h / g, T, N]: query head i uses key/value head i // (h / g)."""
    own = piece.of(keys)
    grouped = q[piece.tokens].float().unflatten(1, (own.shape[1], -1))
    scores = torch.einsum("tgnd,kgd->gntk", grouped * scale, own.float())
    return torch.softmax(scores.masked_fill(~piece.mask, float("-inf")), dim=-1)
