"""What later models do to rotary positions: YaRN, and queries that grow with their position."""

import math
import reprlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mistral_portable.errors import ConfigError

__all__ = ["QueryScale", "Yarn", "rope_from_hf", "rope_from_params", "rope_to_hf", "rope_to_params"]

_LONGEST = 2**31 - 1
_LARGEST = 1e6  # far above any factor and any number of turns
_LENGTH = "original_max_position_embeddings"
_KNOWN = {"max_position_embeddings", "rope_theta", "rope_type", "type", "llama_4_scaling_beta", _LENGTH}
_YARN = {"factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"}


@dataclass(frozen=True)
class Yarn:
    """RoPE for texts `factor` times as long as the `original_max_position_embeddings` tokens of pre-training.

    Pairs that turn more than `beta_fast` times within the original length keep their frequency, those that turn less
    than `beta_slow` times have it divided by `factor`, and those between get a mixture. Cosines and sines are
    multiplied with `attention_factor`; None: 0.1 ln(factor) + 1. truncate: the bounds are whole pairs.

    Source: Peng et al. 2023, YaRN, sections 3.2 to 3.4; transformers' `_compute_yarn_parameters`. Raises ConfigError.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _require_length(self.original_max_position_embeddings)
        for name, least in (("factor", 1.0), ("beta_fast", 0.0), ("beta_slow", 0.0)):
            value = _number(name, getattr(self, name))
            if value < least or not value:
                raise ConfigError(f"{name}={value!r} must be {'at least 1' if least else 'positive'}")
            if not 1 / _LARGEST <= value <= _LARGEST:
                raise ConfigError(f"{name}={value!r} must be from {1 / _LARGEST} to {_LARGEST}")
            object.__setattr__(self, name, value)
        if self.beta_fast < self.beta_slow:
            raise ConfigError(f"beta_fast={self.beta_fast!r} must not be less than beta_slow={self.beta_slow!r}")
        if self.attention_factor is None:
            object.__setattr__(self, "attention_factor", _logarithmic(self.factor))
        if _number("attention_factor", self.attention_factor) <= 0:
            raise ConfigError(f"attention_factor={self.attention_factor!r} must be positive")
        if not isinstance(self.truncate, bool):
            raise ConfigError(f"truncate={reprlib.repr(self.truncate)} must be true or false")

    @property
    def usual_attention_factor(self) -> float:
        """What None stands for: 0.1 ln(factor) + 1."""
        return _logarithmic(self.factor)

    def frequencies(self, head_dim: int, theta: float) -> tuple[float, ...]:
        """By how much each of the head_dim / 2 pairs turns per position, in radians.

        With head_dim 8, theta 1e4, 16 times 64 tokens: pairs turn by 1, 0.1, 0.01, 0.001 without YaRN. In 64 tokens
        a pair j turns 32 times where j = -0.5, once where j = 1.007. So the bounds are 0 and 2, and what remains of
        the frequencies is 1, 17/32, 1/16 and 1/16.
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
    """Queries at position p are multiplied with 1 + beta * ln(1 + floor(p / original_max_position_embeddings)).

    With beta 0.1 and 16384: 1 up to position 16383, 1.069 from there on, 1.22 at 131072. Source: transformers'
    `modeling_ministral3.py` (`get_llama_4_attn_scale`). Raises ConfigError.
    """

    beta: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if _number("beta", self.beta) <= 0:
            raise ConfigError(f"beta={self.beta!r} must be positive")
        _require_length(self.original_max_position_embeddings)


def rope_from_hf(values: dict[str, Any]) -> dict[str, Any]:
    """Take `rope_parameters` (transformers 5) and `rope_scaling` (older) out of the keys of a `config.json`.

    Returns some of rope_theta, yarn and query_scale. Raises ConfigError for what would otherwise be ignored.
    """
    found: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = values.pop(name, None)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name}={reprlib.repr(given)} must be an object")
        with _named(name):
            found |= _of_hf(given, values.get("max_position_embeddings"))
    return found


def _of_hf(given: Mapping[str, Any], longest: Any) -> dict[str, Any]:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise ConfigError(f"rope_type={reprlib.repr(kind)} is not supported: only 'default' and 'yarn' are")
    for key in given.keys() - (_KNOWN | _YARN if kind == "yarn" else _KNOWN):  # to ignore them would change the answers
        if given[key] not in (None, 1):
            raise ConfigError(f"{reprlib.repr(key)}={reprlib.repr(given[key])} is not supported")
    found: dict[str, Any] = {"rope_theta": given["rope_theta"]} if "rope_theta" in given else {}
    original: Any = given.get("original_max_position_embeddings", longest)
    if beta := given.get("llama_4_scaling_beta"):
        found["query_scale"] = QueryScale(beta, original)
    if kind == "yarn":
        own = {name: given[name] for name in ("beta_fast", "beta_slow", "truncate") if given.get(name) is not None}
        factor: Any = given.get("factor")
        found["yarn"] = Yarn(factor, original, attention_factor=_attention_factor(given), **own)
    return found


def _attention_factor(given: Mapping[str, Any]) -> Any:
    if given.get("attention_factor") is not None:
        return given["attention_factor"]
    scales = [_number(name, given.get(name) or 0) for name in ("mscale", "mscale_all_dim")]
    if not all(scales):
        return None
    own, all_dim = (_logarithmic(_number("factor", given.get("factor")), scale) for scale in scales)
    return own / all_dim if all_dim else None


def rope_to_hf(theta: float, yarn: Yarn | None, query_scale: QueryScale | None) -> dict[str, Any]:
    """`rope_parameters` of a `config.json`. Raises ConfigError where the two have different original lengths."""
    rope: dict[str, Any] = {"rope_type": "yarn" if yarn else "default", "rope_theta": theta}
    lengths = {scaling.original_max_position_embeddings for scaling in (yarn, query_scale) if scaling}
    if len(lengths) > 1:
        raise ConfigError(
            f"YaRN and the scale of queries have different original lengths, {sorted(lengths)}, which only raw files "
            "can say: convert it to raw"
        )
    if lengths:
        # A class of transformers that knows this scale at all multiplies with it always.
        rope["llama_4_scaling_beta"] = query_scale.beta if query_scale else 0.0
        rope["original_max_position_embeddings"] = lengths.pop()
    if yarn:
        rope |= {name: getattr(yarn, name) for name in ("factor", "beta_fast", "beta_slow", "attention_factor")}
        rope |= {} if yarn.truncate else {"truncate": False}
        if yarn.attention_factor == 1:  # said once more, for readers that compute it from these
            rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return rope


def rope_from_params(values: dict[str, Any]) -> dict[str, Any]:
    """Take `yarn` and `llama_4_scaling` out of the keys of a `params.json`; returns some of yarn and query_scale."""
    found: dict[str, Any] = {}
    with _named("yarn"):
        given = _object(values.pop("yarn", None), "factor", _LENGTH, "beta", "alpha", "apply_scale")
        if given:
            scaled = given.get("apply_scale", True)
            if not isinstance(scaled, bool):
                raise ConfigError(f"apply_scale={reprlib.repr(scaled)} must be true or false")
            factor: Any = given.get("factor")
            length: Any = given.get(_LENGTH)
            fast, slow = given.get("beta", 32.0), given.get("alpha", 1.0)
            found["yarn"] = Yarn(factor, length, fast, slow, None if scaled else 1.0)
    with _named("llama_4_scaling"):
        given = _object(values.pop("llama_4_scaling", None), "beta", _LENGTH)
        if given.get("beta"):
            length = given.get(_LENGTH)
            found["query_scale"] = QueryScale(given["beta"], length)
    return found


def rope_to_params(yarn: Yarn | None, query_scale: QueryScale | None) -> dict[str, Any]:
    """`yarn` and `llama_4_scaling` of a `params.json`. Raises ConfigError for what these have no words for."""
    params: dict[str, Any] = {}
    if yarn:
        usual = yarn.attention_factor == yarn.usual_attention_factor
        if not yarn.truncate or (not usual and yarn.attention_factor != 1):
            raise ConfigError(
                f"params.json cannot say {yarn}: only an attention factor of 1 or the usual one, truncated"
            )
        params["yarn"] = {
            "factor": yarn.factor,
            _LENGTH: yarn.original_max_position_embeddings,
            "beta": yarn.beta_fast,
            "alpha": yarn.beta_slow,
            "apply_scale": usual,
        }
    if query_scale:
        length = query_scale.original_max_position_embeddings
        params["llama_4_scaling"] = {"beta": query_scale.beta, _LENGTH: length}
    return params


def _object(given: object, *known: str) -> dict[str, Any]:
    if not given:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{reprlib.repr(given)} is no object")
    for name in sorted(given.keys() - set(known)):
        raise ConfigError(f"{reprlib.repr(name)} is not supported")
    return dict(given)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which key an error is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _require_length(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LONGEST:
        raise ConfigError(
            f"original_max_position_embeddings={reprlib.repr(value)} must be an integer from 1 to {_LONGEST}"
        )


def _number(name: str, value: object) -> float:
    biggest = sys.float_info.max
    if isinstance(value, bool) or not isinstance(value, int | float) or not -biggest <= value <= biggest:
        raise ConfigError(f"{name}={reprlib.repr(value)} must be a finite number")
    return float(value)


def _logarithmic(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
