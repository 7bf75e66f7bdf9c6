"""What `rope` multiplies with: computed here for all executors, in float64, as positions may be large."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mistral_portable.config import MistralConfig, QueryScale

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
        """Of the queries or the keys of a model: theta^(-2j / head_dim), or what YaRN makes of it."""
        growing = config.query_scale if queries else None
        if config.yarn:
            frequencies = config.yarn.frequencies(config.head_dim, config.rope_theta)
            return cls(frequencies, config.yarn.attention_factor or 1.0, growing)
        half = config.head_dim // 2
        return cls(tuple(float(config.rope_theta) ** (-j / half) for j in range(half)), query_scale=growing)

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

    def _factor(self, positions: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        factor = np.full(len(positions), self.scale)
        if self.query_scale is not None:
            periods = positions // self.query_scale.original_max_position_embeddings
            factor *= 1 + self.query_scale.beta * np.log1p(periods)
        return factor

    @cached_property
    def _frequencies(self) -> NDArray[np.float64]:
        return np.array(self.frequencies)
