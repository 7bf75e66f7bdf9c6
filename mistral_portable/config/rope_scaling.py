"""Changes that later models and finetunes make to RoPE, and queries that are scaled by their position.

Each change has `frequencies`, the angles by which the pairs of a head turn per position, and `attention_factor`, by
which cosines and sines are multiplied. Both are the same for all tokens of all texts, so that a key does not depend on
what comes after it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mistral_portable.config.checks import integer, real, show
from mistral_portable.errors import ConfigError

__all__ = [
    "DynamicScaling",
    "LinearScaling",
    "Llama3Scaling",
    "LongRope",
    "QueryScale",
    "RopeScaling",
    "Yarn",
    "plain_frequencies",
    "yarn_magnitude",
]

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

    kind: ClassVar[str] = "yarn"

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        integer("original_max_position_embeddings", self.original_max_position_embeddings, minimum=1)
        for name, least in (("factor", 1.0), ("beta_fast", 0.0), ("beta_slow", 0.0)):
            object.__setattr__(self, name, _bounded(name, getattr(self, name), least))
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
        plain = plain_frequencies(head_dim, theta)
        stretched = [min(max((j - low) / width, 0.0), 1.0) for j in range(half)]
        return tuple(f * (1 - part + part / self.factor) for f, part in zip(plain, stretched, strict=True))


@dataclass(frozen=True)
class LinearScaling:
    """RoPE whose positions are divided by `factor` (at least 1), for texts so many times as long.

    Source: Chen et al. 2023, Extending Context Window of Large Language Models via Positional Interpolation.
    Raises ConfigError for values out of range.
    """

    kind: ClassVar[str] = "linear"
    attention_factor: ClassVar[float] = 1.0
    original_max_position_embeddings: ClassVar[None] = None

    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _bounded("factor", self.factor, 1.0))

    def frequencies(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """Return the plain ones divided by the factor.

        >>> LinearScaling(4.0).frequencies(4, 1e4)
        (0.25, 0.0025)
        """
        return tuple(f / self.factor for f in plain_frequencies(head_dim, theta))


@dataclass(frozen=True)
class DynamicScaling:
    """RoPE that is unchanged up to `max_position_embeddings` tokens, where texts end here.

    In a longer text all tokens would turn by other angles with each further token, also those that were read before.

    Source: transformers' `_compute_dynamic_ntk_parameters`. Raises ConfigError for values out of range.
    """

    kind: ClassVar[str] = "dynamic"
    attention_factor: ClassVar[float] = 1.0
    original_max_position_embeddings: ClassVar[None] = None

    factor: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", _bounded("factor", self.factor, 1.0))

    def frequencies(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """Return the plain ones."""
        return plain_frequencies(head_dim, theta)


@dataclass(frozen=True)
class Llama3Scaling:
    """RoPE of Llama 3.1, for texts `factor` times as long as the `original_max_position_embeddings` of pre-training.

    Pairs that turn more than `high_freq_factor` times within the original length keep their frequency, those that turn
    less than `low_freq_factor` times have it divided by `factor`, and those between are interpolated by their turns.

    Source: transformers' `_compute_llama3_parameters`. Raises ConfigError for values out of range.
    """

    kind: ClassVar[str] = "llama3"
    attention_factor: ClassVar[float] = 1.0

    factor: float
    original_max_position_embeddings: int
    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self) -> None:
        integer("original_max_position_embeddings", self.original_max_position_embeddings, minimum=1)
        for name, least in (("factor", 1.0), ("low_freq_factor", 0.0), ("high_freq_factor", 0.0)):
            object.__setattr__(self, name, _bounded(name, getattr(self, name), least))
        if self.high_freq_factor <= self.low_freq_factor:
            bounds = f"low_freq_factor={self.low_freq_factor!r}"
            raise ConfigError(f"high_freq_factor={self.high_freq_factor!r} must be greater than {bounds}")

    def frequencies(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """Return the angles, in radians.

        Example: head_dim 8, theta 1e4, factor 8, 64 tokens, factors 1 and 4. In 64 tokens the pairs turn 10.19, 1.019,
        0.1 and 0.01 times: the first keeps its frequency, the second has (1.019 - 1) / (4 - 1) of its own and the rest
        of an eighth of it, the others have an eighth: 1, 0.01304, 0.00125, 0.000125.
        """
        width = self.high_freq_factor - self.low_freq_factor
        turns = [f * self.original_max_position_embeddings / (2 * math.pi) for f in plain_frequencies(head_dim, theta)]
        kept = [min(max((own - self.low_freq_factor) / width, 0.0), 1.0) for own in turns]
        plain = plain_frequencies(head_dim, theta)
        return tuple(f * (part + (1 - part) / self.factor) for f, part in zip(plain, kept, strict=True))


@dataclass(frozen=True)
class LongRope:
    """RoPE whose pairs have factors of their own, which divide their frequencies: short ones for models whose texts end
    within `original_max_position_embeddings` tokens, long ones for others (`is_long`, which MistralConfig sets).

    transformers changes from the short factors to the long ones where a text grows beyond the original length, and
    keeps the keys that it has; so answers depend on how a text was cut into calls. Here a model has one of both.

    Source: Ding et al. 2024, LongRoPE; transformers' `_compute_longrope_parameters`. Raises ConfigError for values out
    of range.
    """

    kind: ClassVar[str] = "longrope"

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    attention_factor: float
    is_long: bool = False

    def __post_init__(self) -> None:
        integer("original_max_position_embeddings", self.original_max_position_embeddings, minimum=1)
        for name in ("short_factor", "long_factor"):
            given = getattr(self, name)
            if not isinstance(given, list | tuple):
                raise ConfigError(f"{name}={show(given)} must be a list of numbers")
            object.__setattr__(self, name, tuple(_bounded(name, value, 0.0) for value in given))
        if real("attention_factor", self.attention_factor) <= 0:
            raise ConfigError(f"attention_factor={self.attention_factor!r} must be positive")

    def frequencies(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """Return the plain ones, each divided by its factor. Raises ConfigError unless there is a factor for each."""
        plain, name = plain_frequencies(head_dim, theta), "long_factor" if self.is_long else "short_factor"
        factors: Sequence[float] = getattr(self, name)
        if len(factors) != len(plain):
            raise ConfigError(f"{name} has {len(factors)} entries, one for each of the {len(plain)} pairs is needed")
        return tuple(f / factor for f, factor in zip(plain, factors, strict=True))


RopeScaling = Yarn | LinearScaling | DynamicScaling | Llama3Scaling | LongRope


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


def plain_frequencies(head_dim: int, theta: float) -> tuple[float, ...]:
    """The angles, in radians, by which the head_dim / 2 pairs of a head turn per position: theta^(-2j / head_dim).

    >>> plain_frequencies(4, 1e4)
    (1.0, 0.01)
    """
    half = head_dim // 2
    return tuple(float(theta) ** (-j / half) for j in range(half))


def _bounded(name: str, value: object, least: float) -> float:
    """The value as a float. Raises ConfigError if it is less than `least` (1 or 0), 0, or far from all models'."""
    number = real(name, value)
    if number < least or not number:
        raise ConfigError(f"{name}={number!r} must be {'at least 1' if least else 'positive'}")
    if not 1 / _LARGEST <= number <= _LARGEST:
        raise ConfigError(f"{name}={number!r} must be from {1 / _LARGEST} to {_LARGEST}")
    return number
