"""The keys of a Hugging Face `config.json`: into the fields of MistralConfig, and back.

The functions take and return plain mappings; `defaults` are the names of MistralConfig's fields with their defaults.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mistral_portable.config.checks import inside, integer, real, show
from mistral_portable.config.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    QueryScale,
    RopeScaling,
    Yarn,
    yarn_magnitude,
)
from mistral_portable.errors import ConfigError

__all__ = ["fields_from_hf", "fields_to_hf", "known_fields", "rope_from_hf", "rope_to_hf"]

_LONGEST = "max_position_embeddings"
_SPELT_OTHERWISE = ("rope_scaling", "query_scale", "extra")
"""Fields that are no keys of a `config.json`: `rope_parameters` and the unknown keys hold them."""

_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "mixtral": {
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "ministral3": {
        "vocab_size": 131072,
        "num_hidden_layers": 34,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 11,
        "sliding_window": None,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "attention_factor": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
}
"""Defaults of transformers' config classes that differ from those of its MistralConfig, by `model_type`."""

_ROPE = {
    "llama_4_scaling_beta",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "rope_theta",
    "rope_type",
    "type",
}
_ROPE_KINDS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"attention_factor", "beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim", "truncate"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "longrope": {"attention_factor", "factor", "short_factor", "long_factor"},
}
"""The keys of each kind of RoPE beside `_ROPE`."""


def fields_from_hf(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a `config.json` states, and its unknown keys as `extra`.

    Reads both spellings of RoPE (`rope_theta`, `rope_parameters`), folds `layer_types` into `sliding_window`, and adds
    the class defaults of the `model_type`. Multimodal configs: the language model's keys are read from `text_config`.

    Raises ConfigError for rope settings or layer types that would otherwise be ignored.
    """
    values = _language_model(data)
    kind = values.get("model_type")
    values = {**(_CLASS_DEFAULTS.get(kind, {}) if isinstance(kind, str) else {}), **values}
    rope = rope_from_hf(values)
    return known_fields(values, defaults) | rope


def fields_to_hf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a `config.json` for all fields of a config, unknown keys included: inverse of `fields_from_hf`.

    Raises ConfigError if YaRN and the query scale have different original lengths, which no key can express.
    """
    keys = {name: value for name, value in fields.items() if name not in _SPELT_OTHERWISE}
    if not fields["num_local_experts"]:
        del keys["num_local_experts"], keys["num_experts_per_tok"]
    if fields["rope_scaling"] or fields["query_scale"]:
        keys["rope_parameters"] = rope_to_hf(fields["rope_theta"], fields["rope_scaling"], fields["query_scale"])
    for name in ("eos_token_id", "sliding_window"):
        if isinstance(keys[name], tuple):
            keys[name] = list(keys[name])
    return {**keys, **fields["extra"]}


def known_fields(values: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Split keys into fields and `extra`, which holds the unknown ones; `layer_types` become the `sliding_window`."""
    values["sliding_window"] = _windows(values, defaults)
    known = defaults.keys() - set(_SPELT_OTHERWISE)
    extra = {name: value for name, value in values.items() if name not in known}
    return {**{name: values[name] for name in known & values.keys()}, "extra": extra}


def rope_from_hf(values: dict[str, Any]) -> dict[str, Any]:
    """Remove `rope_parameters` (transformers 5) and `rope_scaling` (older) from the keys, and return their fields.

    The result has some of rope_theta, rope_scaling and query_scale. Raises ConfigError for what is not supported.
    """
    found: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = values.pop(name, None)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"{name}={show(given)} must be an object")
        with inside(name):
            found |= _rope_fields(given, values.get("original_max_position_embeddings"), values.get(_LONGEST))
    return found


def rope_to_hf(theta: float, scaling: RopeScaling | None, query_scale: QueryScale | None) -> dict[str, Any]:
    """The `rope_parameters` of a `config.json`. Raises ConfigError if the two have different original lengths."""
    rope: dict[str, Any] = {"rope_type": scaling.kind if scaling else "default", "rope_theta": theta}
    lengths = {own.original_max_position_embeddings or 0 for own in (scaling, query_scale) if own} - {0}
    if len(lengths) > 1:
        raise ConfigError(
            f"RoPE and the query scale have different original lengths, {sorted(lengths)}, which only raw files "
            "can express: convert it to raw"
        )
    if lengths:
        rope["original_max_position_embeddings"] = lengths.pop()
    yarn = scaling if isinstance(scaling, Yarn) else None
    if yarn or query_scale:
        # transformers' classes that know the query scale apply it always: 0 turns it off.
        rope["llama_4_scaling_beta"] = query_scale.beta if query_scale else 0.0
    if scaling and not yarn:
        own = {name: value for name, value in asdict(scaling).items() if name in _ROPE_KINDS[scaling.kind]}
        rope |= {name: [*value] if isinstance(value, tuple) else value for name, value in own.items()}
    if yarn:
        rope |= {name: getattr(yarn, name) for name in ("factor", "beta_fast", "beta_slow", "attention_factor")}
        rope |= {} if yarn.truncate else {"truncate": False}
        if yarn.attention_factor == 1:  # repeated for readers that compute the factor from these two
            rope |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return rope


def _language_model(data: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's keys, with the keys outside `text_config` that concern all weights."""
    text = data.get("text_config")
    if not isinstance(text, Mapping):
        return dict(data)
    common = ("quantization", "quantization_config", "compression_config", "tie_word_embeddings")
    return {**{name: data[name] for name in common if name in data}, **text}


def _windows(values: dict[str, Any], defaults: Mapping[str, Any]) -> Any:
    """`sliding_window` (an int, null or a list), with `layer_types`, which is removed, folded into it."""
    window = values.get("sliding_window", defaults["sliding_window"])
    kinds = values.pop("layer_types", None)
    if kinds is None:
        return tuple(window) if isinstance(window, list) else window
    if not isinstance(kinds, list) or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise ConfigError(f"layer_types={show(kinds)}: only 'full_attention' and 'sliding_attention' are known")
    if len(kinds) != values.get("num_hidden_layers", defaults["num_hidden_layers"]):
        raise ConfigError(f"layer_types has {len(kinds)} entries, one per layer is needed")
    if isinstance(window, list | dict):
        raise ConfigError(f"sliding_window={show(window)} must be one number or null beside layer_types")
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows[0] if len(set(windows)) == 1 else windows


def _rope_fields(given: Mapping[str, Any], original: Any, longest: Any) -> dict[str, Any]:
    """rope_theta, rope_scaling and query_scale of `rope_parameters`.

    original: the original length, if it is stated beside them; it then counts. longest: `max_position_embeddings`, if
    stated.
    """
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_KINDS:
        raise ConfigError(f"rope_type={show(kind)} is not supported: {', '.join(_ROPE_KINDS)} are")
    for key in given.keys() - (_ROPE | _ROPE_KINDS[kind]):  # ignoring them would change the answers
        if given[key] not in (None, 1):
            raise ConfigError(f"{show(key)}={show(given[key])} is not supported")
    found: dict[str, Any] = {"rope_theta": given["rope_theta"]} if "rope_theta" in given else {}
    if original is None:
        original = given.get("original_max_position_embeddings", longest)
    if beta := given.get("llama_4_scaling_beta"):
        found["query_scale"] = QueryScale(beta, original)
    if kind != "default":
        found["rope_scaling"] = _scaling(kind, given, original, longest)
    return found


def _scaling(kind: str, given: Mapping[str, Any], original: Any, longest: Any) -> RopeScaling:
    factor: Any = given.get("factor")
    match kind:
        case "linear":
            return LinearScaling(factor)
        case "dynamic":
            return DynamicScaling(factor)
        case "llama3":
            low, high = (given.get(f"{name}_freq_factor") for name in ("low", "high"))
            return Llama3Scaling(factor, original, low, high)  # type: ignore[arg-type]  # it checks
        case "longrope":
            short, long = given.get("short_factor"), given.get("long_factor")
            attention = _long_attention_factor(given, original, longest)
            return LongRope(short, long, original, attention)  # type: ignore[arg-type]  # it checks
        case _:
            own = {name: given[name] for name in ("beta_fast", "beta_slow", "truncate") if given.get(name) is not None}
            return Yarn(factor, original, attention_factor=_attention_factor(given), **own)


def _long_attention_factor(given: Mapping[str, Any], original: Any, longest: Any) -> float:
    """The stated factor of LongRoPE, or sqrt(1 + ln(factor) / ln(original)), and 1 for a `factor` of at most 1.

    A `factor` that is not stated is longest / original.
    """
    if given.get("attention_factor") is not None:
        return real("attention_factor", given["attention_factor"])
    length = integer("original_max_position_embeddings", original, minimum=1)
    if given.get("factor") is None:
        factor = integer(_LONGEST, longest, minimum=1) / length
    else:
        factor = real("factor", given["factor"])
    if factor > 1 and length == 1:
        raise ConfigError("original_max_position_embeddings=1 must be greater: the attention factor is infinite")
    return math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0


def _attention_factor(given: Mapping[str, Any]) -> Any:
    """The stated factor, or the one that follows from `mscale` and `mscale_all_dim`; None for YaRN's default."""
    if given.get("attention_factor") is not None:
        return given["attention_factor"]
    scales = [real(name, given.get(name) or 0) for name in ("mscale", "mscale_all_dim")]
    if not all(scales):
        return None
    own, all_dim = (yarn_magnitude(real("factor", given.get("factor")), scale) for scale in scales)
    return own / all_dim if all_dim else None
