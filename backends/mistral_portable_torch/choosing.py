"""How the device chooses tokens: the highest logits, or draws by the sampler's rule.

A draw must be the sampler's, which adds up float64 probabilities in another order. So the device says how far its sums
may be from the sampler's; where a number is nearer than that to a bound between two tokens, it leaves the row to the
sampler. All else is comparisons and single operations of IEEE arithmetic, which give the same bits everywhere.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mistral_portable.boundary import Draws

__all__ = ["Choice", "Drawn", "Highest"]

_TOGETHER = 16  # rows that are drawn at a time: each entry takes _DRAWING bytes
_DRAWING = 64
_ARRAYS = ("number", "temperature", "top_k", "top_p", "least")


class Choice(Protocol):
    """How the tokens of a step's rows are chosen."""

    @property
    def key(self) -> Hashable:
        """The part of it that a recorded step bakes in."""

    @property
    def keeps_logits(self) -> bool:
        """Whether the sampler may want to see the logits."""

    def arrays(self, rows: int) -> Mapping[str, NDArray[Any]]:
        """Inputs of the step, by name, of so many rows: the last one is repeated where the step is padded."""

    def choose(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """logits float32 [R, vocab_size] -> ids, int32 [R]; -1: the sampler must look at the row."""

    def scratch_bytes(self, rows: int, vocab_size: int) -> int:
        """The most bytes that it takes at once, with the logits that it keeps."""


class Highest:
    """The highest logit, the lowest id on ties; -1 for a row that the sampler refuses."""

    key = "highest"
    keeps_logits = False

    def arrays(self, rows: int) -> Mapping[str, NDArray[Any]]:
        return {}

    def choose(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        return torch.where(_is_sound(logits), logits.argmax(-1), -1).int()

    def scratch_bytes(self, rows: int, vocab_size: int) -> int:
        return 0


@dataclass(frozen=True)
class Drawn:
    """The tokens that the sampler would draw. It needs float64 on the device."""

    draws: Draws

    keeps_logits = True

    @property
    def key(self) -> Hashable:
        return "drawn", self._ranks

    def arrays(self, rows: int) -> Mapping[str, NDArray[Any]]:
        draws = self.draws
        least = np.array([log(p) if p else -np.inf for p in draws.min_p.tolist()])
        # least: a logit's, below the highest one
        arrays: tuple[NDArray[Any], ...] = draws.numbers, draws.temperatures, draws.top_k, draws.top_p, least
        chosen = np.minimum(np.arange(rows), len(least) - 1)
        return {f"draws.{name}": array[chosen] for name, array in zip(_ARRAYS, arrays, strict=True)}

    def choose(self, logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        own = {name: inputs[f"draws.{name}"][:, None].split(_TOGETHER) for name in _ARRAYS}
        parts = [
            _draw(some, **{name: x[number] for name, x in own.items()}, ranks=self._ranks)
            for number, some in enumerate(logits.split(_TOGETHER))
        ]
        return torch.cat(parts).int()

    def scratch_bytes(self, rows: int, vocab_size: int) -> int:
        return min(rows, _TOGETHER) * vocab_size * _DRAWING + 2 * rows * vocab_size * 4

    @property
    def _ranks(self) -> bool:
        """Whether a rule needs the logits in order, which takes a sort."""
        return bool(self.draws.top_k.any() or (self.draws.top_p < 1).any())


def _is_sound(logits: Tensor) -> Tensor:
    return torch.isfinite(logits.amax(-1))  # NaN if there is one


def _draw(
    logits: Tensor,
    *,
    number: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    least: Tensor,
    ranks: bool,
) -> Tensor:
    """logits [R, V], the others [R, 1] -> int64 [R]. The rules are those of `sampling.processors`."""
    divisor = torch.where(temperature == 0, 1.0, temperature)
    row = (logits.double() - logits.amax(-1, keepdim=True)) / divisor
    row = torch.where(divisor == 1, logits, row.float())
    top = row.amax(-1, keepdim=True).double()
    weights = (row.double() - top).exp()
    sure = torch.ones_like(top, dtype=torch.bool)
    if ranks:
        kept, sure = _kept(row, weights, top_k, top_p)
        weights = weights.masked_fill(~kept, 0)
    weights = weights.masked_fill(row.double() < top + least, 0)
    sums = weights.cumsum(-1)
    total = sums[:, -1:]
    wanted = number * total
    index = (sums <= wanted).sum(-1, keepdim=True)
    sure &= _is_between(wanted, sums, index, total)
    chosen = torch.where(temperature == 0, logits.argmax(-1, keepdim=True), torch.where(sure, index, -1))
    return torch.where(_is_sound(logits), chosen[:, 0], -1)


def _kept(row: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Whether top_k and top_p keep each token, bool [R, V], and whether that is sure, bool [R, 1]."""
    size = row.shape[1]
    ranked, order = torch.sort(row, dim=-1, descending=True, stable=True)  # of ties the lowest id first
    k = torch.where(top_k == 0, size, top_k.clamp(max=size)).long()
    likely = weights.gather(-1, order).masked_fill(ranked < ranked.gather(-1, k - 1), 0)
    shares = (likely / likely.sum(-1, keepdim=True)).cumsum(-1)
    index = (shares < top_p).sum(-1, keepdim=True)  # of the token that reaches top_p
    cuts = top_p < 1
    kept = torch.arange(size, device=row.device) <= torch.where(cuts, index, size)
    kept &= ranked >= ranked.gather(-1, k - 1)
    sure = ~cuts | _is_between(top_p, shares, index, torch.ones_like(top_p))
    return torch.zeros_like(kept).scatter(-1, order, kept), sure


def _is_between(value: Tensor, sums: Tensor, index: Tensor, total: Tensor) -> Tensor:
    """Whether a value [R, 1] lies between the sums [R, V] before an index and at it, however these are added up."""
    margin = total * _margin(sums.shape[1])
    at = sums.gather(-1, index.clamp(max=sums.shape[1] - 1))
    before = sums.gather(-1, (index - 1).clamp(min=0)).masked_fill(index == 0, -torch.inf)
    return (at - value > margin) & (value - before > margin)


def _margin(count: int) -> float:
    """The most by which two sums of `count` positive numbers, or of the first of them, differ, relative to the total.

    Each addition is off by half an epsilon at most, in whatever order; exponentials by less than 8 of them together
    (NumPy's, CUDA's), quotients and products by another half. So `count` + 16 epsilons; here with room for twice that.
    """
    return 2 * (count + 16) * torch.finfo(torch.float64).eps
