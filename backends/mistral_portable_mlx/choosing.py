"""How the device chooses tokens: the highest logits, or draws by the sampler's rule.

A draw must be the sampler's, whose probabilities are float64; Apple's GPUs have float32 and integers of 64 bits. So a
weight exp(x) is computed in float32 and becomes an integer: sums have the same bits in any order, and only the weights
are off, by no more than a known share (`_OFF`). Where a number is nearer than that to a bound between two tokens, or a
rule may keep another token than the sampler's, the row is left to the sampler.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import log
from typing import Protocol

import mlx.core as mx
import numpy as np

from mistral_portable.boundary import Draws

__all__ = ["Choice", "Drawn", "Highest"]

_TOGETHER = 16  # rows that are drawn at a time
_DRAWING, _RANKING = 32, 69  # bytes that a logit takes at most, without and with a sort
_OFF = 5 * 2.0**-23
"""The most by which exp(x) differs from the sampler's, relative to (1 + |x|) exp(x); by which x does, to |x|.

In epsilons of float32, of which a rounding is half of one: x is a difference over a temperature, with a rounding each,
a division of 2.5, and the sampler's own rounding, so 4 |x|. An exponential takes 4 (Metal's; less on a CPU), and on a
CPU a rounding of x / log(2), 0.7 |x|.
"""
_FLOOR = -200.0  # exp(x) is 0 in float32 from -104 on
_COLDEST, _HOTTEST = 1e-30, 1e30  # temperatures for which no quotient that counts is denormal or infinite
_ANY = -1000.0  # the least x without min_p


class Choice(Protocol):
    """How the tokens of a step's rows are chosen."""

    @property
    def key(self) -> Hashable:
        """The part of it that a compiled step bakes in."""

    @property
    def keeps_logits(self) -> bool:
        """Whether the sampler may want to see the logits."""

    def arrays(self) -> Mapping[str, mx.array]:
        """Inputs of the step, by name."""

    def choose(self, logits: mx.array, inputs: Mapping[str, mx.array]) -> mx.array:
        """logits float32 [R, vocab_size] -> ids, int32 [R]; -1: the sampler must look at the row."""

    def scratch_bytes(self, rows: int, vocab_size: int) -> int:
        """The most bytes that `choose` needs at once."""


class Highest:
    """The highest logit, the lowest id on ties; -1 for a row that the sampler refuses."""

    key = "highest"
    keeps_logits = False

    def arrays(self) -> Mapping[str, mx.array]:
        return {}

    def choose(self, logits: mx.array, inputs: Mapping[str, mx.array]) -> mx.array:
        return mx.where(_is_sound(logits), logits.argmax(axis=-1).astype(mx.int32), -1)

    def scratch_bytes(self, rows: int, vocab_size: int) -> int:
        return rows * vocab_size * 2  # whether each is NaN


@dataclass(frozen=True)
class Drawn:
    """The tokens that the sampler would draw."""

    draws: Draws

    keeps_logits = True

    @property
    def key(self) -> Hashable:
        return "drawn", self._ranks

    def arrays(self) -> Mapping[str, mx.array]:
        """Each [R, 1], float32 but for top_k. A temperature of NaN leaves the row to the sampler."""
        draws, cold = self.draws, self.draws.temperatures
        divides = (cold == 0) | ((cold >= _COLDEST) & (cold <= _HOTTEST))
        arrays = {
            "number": draws.numbers,
            "temperature": np.where(divides, cold, np.nan),
            "top_p": draws.top_p,
            "least": np.array([log(p) if p else _ANY for p in draws.min_p.tolist()]),
        }
        made = {f"draws.{name}": mx.array(array[:, None].astype(np.float32)) for name, array in arrays.items()}
        return made | {"draws.top_k": mx.array(draws.top_k[:, None])}

    def choose(self, logits: mx.array, inputs: Mapping[str, mx.array]) -> mx.array:
        parts = []
        for begin in range(0, len(logits), _TOGETHER):
            rows = slice(begin, begin + _TOGETHER)
            number, temperature, top_k, top_p, least = (
                inputs[f"draws.{name}"][rows] for name in ("number", "temperature", "top_k", "top_p", "least")
            )
            some = _Rows(logits[rows], temperature)
            kept, sure = some.kept(top_k, top_p) if self._ranks else (mx.array(True), mx.array(True))
            parts.append(some.drawn(number, kept, sure, least))
        return mx.concatenate(parts)

    def scratch_bytes(self, rows: int, vocab_size: int) -> int:
        return rows * vocab_size * (_RANKING if self._ranks else _DRAWING)

    @property
    def _ranks(self) -> bool:
        """Whether a rule needs the logits in order, which takes a sort."""
        return bool(self.draws.top_k.any() or (self.draws.top_p < 1).any())


def _is_sound(logits: mx.array) -> mx.array:
    return ~(mx.isnan(logits).any(axis=-1) | mx.isinf(logits.max(axis=-1)))


class _Rows:
    """Logits float32 [R, V] and the sampler's rules for them (`sampling.processors`). Arguments are [R, 1]."""

    def __init__(self, logits: mx.array, temperature: mx.array) -> None:
        self._logits, self._temperature = logits, temperature
        self._top = logits.max(axis=-1, keepdims=True)
        self._scaled = self._over_temperature(logits)
        self._unit = 2.0 ** (62 - logits.shape[1].bit_length())  # of weights as integers: sums stay below 2^62

    def kept(self, top_k: mx.array, top_p: mx.array) -> tuple[mx.array, mx.array]:
        """Whether top_k and top_p keep each token, bool [R, V], and whether that is sure, bool [R, 1]."""
        logits, size = self._logits, self._logits.shape[1]
        rising = mx.sort(logits, axis=-1)
        last = mx.take_along_axis(rising, size - mx.where(top_k == 0, size, mx.minimum(top_k, size)), axis=-1)
        sure = ~((logits < last) & self._may_tie(last)).any(axis=-1, keepdims=True)

        scaled = self._over_temperature(rising)
        weights = mx.where(rising < last, 0, self._weights(scaled))
        shares = mx.cumsum(weights, axis=-1, reverse=True)  # of each token and all above it
        wanted = _share(shares[:, :1], top_p)
        above = (shares < wanted).sum(axis=-1, keepdims=True)  # tokens that do not reach it
        place = mx.maximum(size - 1 - above, 0)
        cut = mx.take_along_axis(rising, place, axis=-1)
        before = mx.take_along_axis(shares, mx.minimum(place + 1, size - 1), axis=-1)
        reached = mx.take_along_axis(shares, place, axis=-1)
        is_cut = _is_between(wanted, mx.where(above == 0, _NONE, before), reached, _margin(weights, scaled))
        is_cut &= ~((logits != cut) & self._may_tie(cut)).any(axis=-1, keepdims=True)

        higher, tied = logits > cut, logits == cut
        left = above + 1 - higher.sum(axis=-1, keepdims=True)  # of those that tie with the last one, the first ones
        likely = higher | (tied & (mx.cumsum(tied.astype(mx.int32), axis=-1) <= left))
        cuts = top_p < 1
        return (logits >= last) & (likely | ~cuts), sure & (is_cut | ~cuts)

    def drawn(self, number: mx.array, kept: mx.array, sure: mx.array, least: mx.array) -> mx.array:
        """Draw among those that are kept, with an x from `least` on: int32 [R]."""
        sure &= ~(kept & (mx.abs(self._scaled - least) < _OFF * mx.abs(least))).any(axis=-1, keepdims=True)
        weights = mx.where(kept & (self._scaled >= least), self._weights(self._scaled), 0)
        sums = mx.cumsum(weights, axis=-1)
        wanted = _share(sums[:, -1:], number)
        index = (sums <= wanted).sum(axis=-1, keepdims=True).astype(mx.int32)
        reached = mx.take_along_axis(sums, mx.minimum(index, sums.shape[1] - 1), axis=-1)
        before = mx.take_along_axis(sums, mx.maximum(index - 1, 0), axis=-1)
        sure &= _is_between(wanted, mx.where(index == 0, _NONE, before), reached, _margin(weights, self._scaled))
        highest = self._logits.argmax(axis=-1, keepdims=True).astype(mx.int32)
        chosen = mx.where(self._temperature == 0, highest, mx.where(sure, index, -1))
        return mx.where(_is_sound(self._logits), chosen[:, 0], -1)

    def _over_temperature(self, logits: mx.array) -> mx.array:
        """x, 0 for the highest logit."""
        divisor = mx.where(self._temperature == 0, 1.0, self._temperature)
        return mx.maximum((logits - self._top) / divisor, _FLOOR)

    def _weights(self, scaled: mx.array) -> mx.array:
        return (mx.exp(scaled) * self._unit).astype(mx.int64)

    def _may_tie(self, bound: mx.array) -> mx.array:
        """Whether the sampler's x of each logit may be that of another one, `bound`: it divides, rounds and compares.
        At temperature 1 it compares logits, and below the floor no token has a weight."""
        x = self._over_temperature(bound)
        near = mx.abs(self._scaled - x) <= -_OFF * (self._scaled + x)
        return near & (x > _FLOOR) & (self._temperature != 1)


_NONE = -(2**61)  # below any sum, for a difference of less than 2^63


def _share(total: mx.array, number: mx.array) -> mx.array:
    """A share of a total, int64, in float32: three roundings, for which there is room in `_margin`."""
    return (total.astype(mx.float32) * number).astype(mx.int64)


def _margin(weights: mx.array, scaled: mx.array) -> mx.array:
    """The most by which a sum of the first weights, and the same share of their total, differ from the sampler's: twice
    the sum of `_OFF` (1 + |x|) exp(x)."""
    return 2 * _OFF * (weights.astype(mx.float32) * (1 - scaled)).sum(axis=-1, keepdims=True)


def _is_between(wanted: mx.array, before: mx.array, reached: mx.array, margin: mx.array) -> mx.array:
    """Whether a share lies between two sums, whatever the sampler's are."""
    return ((reached - wanted).astype(mx.float32) > margin) & ((wanted - before).astype(mx.float32) > margin)
