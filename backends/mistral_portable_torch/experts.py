"""Mixtures of experts: each token goes through the MLPs of its top-k experts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mistral_portable_torch.elementwise import Elementwise
from mistral_portable_torch.matrices import Blocks, Dense, Matrix
from mistral_portable_torch.packed import Packed

__all__ = ["Experts", "route"]


class Experts:
    """The experts of a layer. matrices: gate, up and down, each the matrices of all experts, stacked by rows."""

    def __init__(self, matrices: Sequence[Matrix], top_k: int, elementwise: Elementwise) -> None:
        self._matrices = [matrix for matrix in matrices if isinstance(matrix, Dense | Blocks | Packed)]
        assert len(self._matrices) == 3
        self._top_k, self._elementwise = top_k, elementwise

    def mix(self, x: Tensor, scores: Tensor, *, waits: bool) -> Tensor:
        """x [T, H], scores [T, E] -> [T, H], added up in float32.

        For few tokens the chosen experts' matrices are gathered, and no others are read. For more, each expert takes
        its own tokens, and the host waits for their indices. waits: whether it may, which it may not in a recorded
        step: every expert takes all tokens then.
        """
        chosen, shares = route(scores.float(), self._top_k)
        count = scores.shape[1]
        if chosen.numel() <= count:
            out = self.gathered(x, chosen, shares, count)
        elif waits:
            out = self.one_by_one(x, chosen, shares, count)
        else:
            out = self.all_tokens(x, chosen, shares, count)
        return out.to(x.dtype)

    def gathered(self, x: Tensor, chosen: Tensor, shares: Tensor, count: int) -> Tensor:
        """chosen, shares [T, top_k]: indices and weights of experts -> float32 [T, H]. Copies T * top_k experts."""
        gate, up, down = (matrix.some_of(chosen.flatten(), count) for matrix in self._matrices)
        each = x.repeat_interleave(self._top_k, 0)[:, :, None]
        inner = self._elementwise.silu_mul((gate @ each)[:, :, 0], (up @ each)[:, :, 0])
        out = (down @ inner[:, :, None])[:, :, 0].unflatten(0, chosen.shape)
        return (out.float() * shares[:, :, None]).sum(1)

    def one_by_one(self, x: Tensor, chosen: Tensor, shares: Tensor, count: int) -> Tensor:
        """Compute the result of `gathered`, each expert on its own tokens; the host waits for their indices."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(count):
            tokens, place = (chosen == expert).nonzero(as_tuple=True)
            if len(tokens):
                total.index_add_(0, tokens, self._one(x[tokens], expert, count) * shares[tokens, place, None])
        return total

    def all_tokens(self, x: Tensor, chosen: Tensor, shares: Tensor, count: int) -> Tensor:
        """Compute the result of `gathered`, every expert on all tokens, most with weight 0; the host does not wait."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert in range(count):
            total += self._one(x, expert, count) * (shares * (chosen == expert)).sum(1, keepdim=True)
        return total

    def _one(self, x: Tensor, expert: int, count: int) -> Tensor:
        gate, up, down = (matrix.one_of(expert, count) for matrix in self._matrices)
        inner = self._elementwise.silu_mul(gate.multiply(x, None), up.multiply(x, None))
        return down.multiply(inner, None).float()


def route(scores: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """scores float32 [T, E] -> experts with the highest scores [T, top_k], the lower index first on ties, and the
    softmax of their scores [T, top_k]."""
    best, chosen = scores.sort(dim=1, descending=True, stable=True)
    return chosen[:, :top_k], best[:, :top_k].softmax(1)
