"""The keys of Mistral's own `params.json`: into the fields of MistralConfig, and back."""

from collections.abc import Mapping
from typing import Any

from mistral_portable.config.checks import inside, show
from mistral_portable.config.hf import known_fields, rope_from_hf
from mistral_portable.config.rope_scaling import QueryScale, RopeScaling, Yarn
from mistral_portable.errors import ConfigError

__all__ = ["fields_from_params", "fields_to_params"]

_WRITTEN = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
}
_WRITTEN_IF_SET = {"max_seq_len": "max_position_embeddings", "tied_embeddings": "tie_word_embeddings"}
"""Keys that are written only if they differ from the default: older readers refuse unknown keys."""

_FIELDS = _WRITTEN | _WRITTEN_IF_SET
_EXPERTS = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
_LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim")
"""Keys of models with latent attention (Large 3, Small 4)."""
_SOUND = ("audio", "whisper")
"""Beginnings of the keys of models that hear or speak (Voxtral), beside the others or in `multimodal`."""

_LENGTH = "original_max_position_embeddings"


def fields_from_params(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a `params.json` states, and its unknown keys as `extra`; `defaults` as for `fields_from_hf`.

    Source: mistral-inference `args.py`; without `rope_theta` it is 1e4 (7B v0.1's file has none), without
    `n_kv_heads` it is `n_heads`, without a window the attention is plain causal.

    Raises ConfigError for models of another architecture, and for settings of `moe`, `yarn` and `llama_4_scaling` that
    would otherwise be ignored or clash.
    """
    for name in _LATENT:
        if data.get(name):
            raise ConfigError(f"{name}={show(data[name])}: latent attention (MLA) is not supported")
    _refuse_sound(data)
    if data.get("model_type", "transformer") != "transformer":
        raise ConfigError(f"model_type={show(data['model_type'])} is not supported, 'transformer' is")
    values = {_FIELDS.get(name, name): value for name, value in data.items()}
    window = values.pop("_sliding_window", None)
    values["sliding_window"] = values.get("sliding_window", window)
    values.setdefault("num_key_value_heads", values.get("num_attention_heads", defaults["num_attention_heads"]))
    values |= _experts(values.pop("moe", None))
    rope, other = _rope_fields(values), rope_from_hf(values)
    if twice := sorted(rope.keys() & other.keys()):
        raise ConfigError(f"{twice[0]} is stated twice, in Mistral's keys and in transformers'")
    return known_fields(values, defaults) | rope | other


def fields_to_params(
    fields: Mapping[str, Any], windows: tuple[int | None, ...], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys of a `params.json` for all fields of a config; windows: that of each layer. Drops `extra`.

    Raises ConfigError for RoPE that no key can express.
    """
    params = {key: fields[name] for key, name in _WRITTEN.items()}
    params |= {key: fields[name] for key, name in _WRITTEN_IF_SET.items() if fields[name] != defaults[name]}
    if fields["num_local_experts"]:
        params["moe"] = {key: fields[name] for key, name in _EXPERTS.items()}
    params |= _rope_keys(fields["rope_scaling"], fields["query_scale"])
    if set(windows) != {None}:
        params["sliding_window"] = windows[0] if len(set(windows)) == 1 else list(windows)
    return params


def _refuse_sound(data: Mapping[str, Any]) -> None:
    """Raise ConfigError for a model with parts for sound. Parts for images pass: the text of such models runs."""
    parts = data.get("multimodal")
    for name, value in [*data.items(), *(parts.items() if isinstance(parts, Mapping) else ())]:
        if value and name.startswith(_SOUND):
            raise ConfigError(f"{name} is not supported: there is no sound here")


def _experts(given: object) -> dict[str, Any]:
    """The fields of `moe`."""
    if not given:
        return {}
    if not isinstance(given, Mapping) or given.keys() != _EXPERTS.keys():
        raise ConfigError(f"moe={show(given)}: {' and '.join(_EXPERTS)} are supported, and both are needed")
    return {_EXPERTS[name]: value for name, value in given.items()}


def _rope_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Remove `yarn` and `llama_4_scaling` from the keys, and return the fields rope_scaling and query_scale."""
    found: dict[str, Any] = {}
    with inside("yarn"):
        given = _object(values.pop("yarn", None), "factor", _LENGTH, "beta", "alpha", "apply_scale")
        if given:
            scaled = given.get("apply_scale", True)
            if not isinstance(scaled, bool):
                raise ConfigError(f"apply_scale={show(scaled)} must be true or false")
            factor: Any = given.get("factor")
            length: Any = given.get(_LENGTH)
            fast, slow = given.get("beta", 32.0), given.get("alpha", 1.0)
            found["rope_scaling"] = Yarn(factor, length, fast, slow, None if scaled else 1.0)
    with inside("llama_4_scaling"):
        given = _object(values.pop("llama_4_scaling", None), "beta", _LENGTH)
        if given.get("beta"):
            length = given.get(_LENGTH)
            found["query_scale"] = QueryScale(given["beta"], length)
    return found


def _rope_keys(scaling: RopeScaling | None, query_scale: QueryScale | None) -> dict[str, Any]:
    """`yarn` and `llama_4_scaling`, for what the model has of the two."""
    params: dict[str, Any] = {}
    yarn = scaling if isinstance(scaling, Yarn) else None
    if scaling and not yarn:
        raise ConfigError(f"params.json cannot express RoPE of the type {scaling.kind!r}: convert it to hf")
    if yarn:
        usual = yarn.attention_factor == yarn.usual_attention_factor
        if not yarn.truncate or (not usual and yarn.attention_factor != 1):
            raise ConfigError(
                f"params.json cannot express {yarn}: only an attention factor of 1 or the usual one, truncated"
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
    """A JSON object; {} for null. Raises ConfigError for other values and for keys that are not `known`."""
    if not given:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{show(given)} is not an object")
    for name in sorted(given.keys() - set(known)):
        raise ConfigError(f"{show(name)} is not supported")
    return dict(given)
