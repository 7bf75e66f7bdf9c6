"""torch's scaled_dot_product_attention with a mask: on any device."""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mistral_portable_torch.attention.kernel import Pieces

__all__ = ["SDPA"]


class SDPA(Pieces):
    """A boolean mask from positions over each lane as it lies."""

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, fixed: Hashable, integers: Mapping[str, Tensor], scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        for s, (tokens, seen) in enumerate(self.seen(fixed, integers)):
            heads = scaled_dot_product_attention(
                q[None, tokens].transpose(1, 2),
                self.lane(keys, fixed, s)[None].transpose(1, 2),
                self.lane(values, fixed, s)[None].transpose(1, 2),
                attn_mask=seen.mask,
                scale=scale,
                enable_gqa=True,
            )
            out[tokens] = heads[0].transpose(0, 1)
        return out
