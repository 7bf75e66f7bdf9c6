"""Attention in plain operations, in float32: the only kernel that can show its softmax."""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from mistral_portable_torch.attention.kernel import Pieces, Seen

__all__ = ["Eager"]


class Eager(Pieces):
    """On any device, in any float type, of any head_dim."""

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, fixed: Hashable, integers: Mapping[str, Tensor], scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        for s, (tokens, seen) in enumerate(self.seen(fixed, integers)):
            weights = _softmax(q[tokens], self.lane(keys, fixed, s), seen, scale)
            lane = self.lane(values, fixed, s).float()
            out[tokens] = torch.einsum("gntk,kgd->tgnd", weights, lane).flatten(1, 2).to(q.dtype)
        return out

    def weights(
        self, q: Tensor, keys: Tensor, fixed: Hashable, integers: Mapping[str, Tensor], scale: float
    ) -> list[Tensor]:
        """Of each sequence the softmax, float32 [T, h, N], in order of slots."""
        return [
            _softmax(q[tokens], self.lane(keys, fixed, s), seen, scale).flatten(0, 1).transpose(0, 1)
            for s, (tokens, seen) in enumerate(self.seen(fixed, integers))
        ]


def _softmax(q: Tensor, keys: Tensor, seen: Seen, scale: float) -> Tensor:
    """q [T, h, d], keys [N, g, d] -> [g, h / g, T, N]: query head i uses key/value head i // (h / g)."""
    grouped = q.float().unflatten(1, (keys.shape[1], -1))
    scores = torch.einsum("tgnd,kgd->gntk", grouped * scale, keys.float())
    return torch.softmax(scores.masked_fill(~seen.mask, float("-inf")), dim=-1)
