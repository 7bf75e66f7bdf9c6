"""Rotation: the cosines and sines of RoPE, computed here for all executors, in float64, as positions may be large."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.config import MistralConfig, QueryScale
from mistral_portable.config.rope_scaling import plain_frequencies

__all__ = ["Rotation"]


@dataclass(frozen=True)
class Rotation:
    """At position p, pair j of a head turns by the angle p * frequencies[j], and grows by the factor
    scale * (1 + beta * ln(1 + floor(p / original_max_position_embeddings))), the latter if there is a `query_scale`.

    frequencies (1, 0.01) at position 100: the pairs turn by 100 and by 1 radian.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0
    query_scale: QueryScale | None = None

    @classmethod
    def of(cls, config: MistralConfig, *, queries: bool) -> "Rotation":
        """The rotation of a model's queries or keys: theta^(-2j / head_dim), changed by the config's scaling."""
        growing = config.query_scale if queries else None
        if scaling := config.rope_scaling:
            frequencies = scaling.frequencies(config.head_dim, config.rope_theta)
            return cls(frequencies, scaling.attention_factor or 1.0, growing)
        return cls(plain_frequencies(config.head_dim, config.rope_theta), query_scale=growing)

    @property
    def head_dim(self) -> int:
        """Numbers of a head: two for each pair."""
        return 2 * len(self.frequencies)

    def table(self, positions: NDArray[np.integer[Any]], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """positions [T] -> [T, 2, head_dim / 2]: cosines and sines, times the factor by which pairs grow.

        In each head the pair (x_j, x_{j + head_dim/2}) = (a, b) becomes (a cos - b sin, b cos + a sin).
        """
        angles = positions[:, None] * self._frequencies
        table = np.empty((len(positions), 2, len(self.frequencies)), dtype)
        if self.scale == 1 and self.query_scale is None:
            table[:, 0], table[:, 1] = np.cos(angles), np.sin(angles)
        else:
            factor = self._factor(positions)[:, None]
            table[:, 0], table[:, 1] = np.cos(angles) * factor, np.sin(angles) * factor
        return table

    def signed_table(self, positions: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """positions [T] -> cosines and signed sines, float32 [T, 1, 2, head_dim / 2] each: `table` for two products.

        A head as [2, head_dim / 2] is x = (a, b), and (b, a) is swapped; the result (a cos - b sin, b cos + a sin) is
        x * cosines + swapped * sines. So the sines' first half is negative.
        """
        table: NDArray[np.float32] = self.table(positions)[:, None]
        cos, sin = table[:, :, :1], table[:, :, 1:]
        return np.repeat(cos, 2, axis=2), np.concatenate([-sin, sin], axis=2)

    def _factor(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        factor = np.full(len(positions), self.scale)
        if self.query_scale is not None:
            periods = positions // self.query_scale.original_max_position_embeddings
            factor *= 1 + self.query_scale.beta * np.log1p(periods)
        return factor

    @cached_property
    def _frequencies(self) -> NDArray[np.float64]:
        return np.array(self.frequencies)
