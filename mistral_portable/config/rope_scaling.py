"""Changes that later models make to RoPE: YaRN, and queries that are scaled by their position."""

import math
from dataclasses import dataclass

from mistral_portable.config.checks import integer, real, show
from mistral_portable.errors import ConfigError

__all__ = ["QueryScale", "Yarn", "yarn_magnitude"]

_LARGEST = 1e6  # far above any factor and any number of turns


@dataclass(frozen=True)
class Yarn:
    """RoPE for texts `factor` times as long as the `original_max_position_embeddings` tokens of pre-training.

    Pairs that turn more than `beta_fast` times within the original length keep their frequency, those that turn less
    than `beta_slow` times have it divided by `factor`, and those between are interpolated. Cosines and sines are
    multiplied by `attention_factor`; None stands for 0.1 ln(factor) + 1. truncate: round the two bounds to whole pairs.

    Source: Peng et al. 2023, YaRN, sections 3.2 to 3.4; transformers' `_compute_yarn_parameters`. Raises ConfigError
    for values out of range.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        integer("original_max_position_embeddings", self.original_max_position_embeddings, minimum=1)
        for name, least in (("factor", 1.0), ("beta_fast", 0.0), ("beta_slow", 0.0)):
            value = real(name, getattr(self, name))
            if value < least or not value:
                raise ConfigError(f"{name}={value!r} must be {'at least 1' if least else 'positive'}")
            if not 1 / _LARGEST <= value <= _LARGEST:
                raise ConfigError(f"{name}={value!r} must be from {1 / _LARGEST} to {_LARGEST}")
            object.__setattr__(self, name, value)
        if self.beta_fast < self.beta_slow:
            raise ConfigError(f"beta_fast={self.beta_fast!r} must not be less than beta_slow={self.beta_slow!r}")
        if self.attention_factor is None:
            object.__setattr__(self, "attention_factor", yarn_magnitude(self.factor))
        if real("attention_factor", self.attention_factor) <= 0:
            raise ConfigError(f"attention_factor={self.attention_factor!r} must be positive")
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"truncate={show(self.truncate)} must be true or false")

    @property
    def usual_attention_factor(self) -> float:
        """The attention factor that None stands for: 0.1 ln(factor) + 1."""
        return yarn_magnitude(self.factor)

    def frequencies(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """The angles, in radians, by which the head_dim / 2 pairs of a head turn per position.

        Example: head_dim 8, theta 1e4, 16 times 64 tokens. Without YaRN the pairs turn by 1, 0.1, 0.01, 0.001. Pair j
        turns 32 times in 64 tokens at j = -0.5, and once at j = 1.007, so the bounds are 0 and 2, and the
        frequencies are multiplied by 1, 17/32, 1/16 and 1/16.
        """
        half = head_dim // 2

        def pair_that_turns(times: float) -> float:
            turns = self.original_max_position_embeddings / (times * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(theta))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        width = 0.001 if low == high else high - low
        plain = [theta ** (-j / half) for j in range(half)]
        stretched = [min(max((j - low) / width, 0.0), 1.0) for j in range(half)]
        return tuple(f * (1 - part + part / self.factor) for f, part in zip(plain, stretched, strict=True))


@dataclass(frozen=True)
class QueryScale:
    """Queries at position p are multiplied by 1 + beta * ln(1 + floor(p / original_max_position_embeddings)).

    Example: beta 0.1 and 16384 give 1 up to position 16383, 1.069 from there on, 1.22 at 131072. Source: transformers'
    `modeling_ministral3.py` (`get_llama_4_attn_scale`). Raises ConfigError for values out of range.
    """

    beta: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if real("beta", self.beta) <= 0:
            raise ConfigError(f"beta={self.beta!r} must be positive")
        integer("original_max_position_embeddings", self.original_max_position_embeddings, minimum=1)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """0.1 * scale * ln(factor) + 1, or 1 if the factor is at most 1; `get_mscale` in transformers."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
