"""MistralConfig: the numbers that define a model, read from HF `config.json` or raw `params.json`."""

import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mistral_portable.errors import ConfigError
from mistral_portable.rope_scaling import QueryScale, Yarn, rope_from_hf, rope_from_params, rope_to_hf

__all__ = ["MistralConfig", "Window"]

Window = int | None
"""Number of keys a query sees, itself included; None = all keys up to itself (plain causal)."""

_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
# Far above any model; keeps a hostile file from asking for absurd tables before a tensor is seen.
_LIMIT = 2**31 - 1
_LAYER_LIMIT = 1000
_HEAD_LIMIT = 2**16
_THETAS = (1e-6, 1e18)
_EXPERT_LIMIT = 2**14  # in all layers: each has three tensors
_REAL_LIMIT = sys.float_info.max  # refuses NaN, infinity and integers beyond float

_RAW_TO_HF = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "tied_embeddings": "tie_word_embeddings",
    "max_seq_len": "max_position_embeddings",
}
_NOT_IN_HF = ("yarn", "query_scale", "extra")
"""Fields that a `config.json` spells otherwise."""

_OF_CLASS: dict[str, dict[str, Any]] = {
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
"""Defaults of transformers' classes that are not those of its MistralConfig, by `model_type`."""


@dataclass(frozen=True)
class MistralConfig:
    """Shape and constants of a Mistral decoder; field names and defaults are those of transformers.

    `sliding_window` is an int W (a query sees W keys, itself included), None (plain causal), or a tuple that
    is repeated over the layers: `(None, 8)` on 4 layers gives the windows None, 8, None, 8 (`layer_windows`).
    With `num_local_experts` (Mixtral) every layer has so many MLPs, of which a token takes `num_experts_per_tok`.
    `extra` keeps every key of a `config.json` that this class does not know; `to_dict` writes it back.

    Raises ConfigError, naming the field, for impossible values.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 0  # 0 or None: hidden_size // num_attention_heads, set in __post_init__
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | tuple[int, ...] | None = 2
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    sliding_window: Window | tuple[Window, ...] = 4096
    attention_dropout: float = 0.0
    yarn: Yarn | None = None
    query_scale: QueryScale | None = None
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict, compare=True, hash=False)

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:  # as in transformers: one key/value head per query head
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        for name in _POSITIVE:
            _integer(name, getattr(self, name), minimum=1)
        if self.num_hidden_layers > _LAYER_LIMIT:
            raise ConfigError(f"num_hidden_layers={self.num_hidden_layers}: at most {_LAYER_LIMIT} are accepted")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        _integer("head_dim", 0 if self.head_dim is None else self.head_dim, minimum=0)
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size={self.hidden_size} is not a multiple of "
                    f"num_attention_heads={self.num_attention_heads}: set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if _integer("head_dim", self.head_dim, minimum=2) > _HEAD_LIMIT:
            raise ConfigError(f"head_dim={self.head_dim}: at most {_HEAD_LIMIT} are accepted")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        if self.hidden_act != "silu":
            raise ConfigError(f"hidden_act={_show(self.hidden_act)} is not supported: Mistral models use 'silu'")
        for name in ("rms_norm_eps", "rope_theta"):
            if _real(name, getattr(self, name)) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be positive")
        if not _THETAS[0] <= self.rope_theta <= _THETAS[1]:
            raise ConfigError(f"rope_theta={self.rope_theta!r} must be from {_THETAS[0]} to {_THETAS[1]}")
        if self.yarn and self.rope_theta <= 1:
            raise ConfigError(f"rope_theta={self.rope_theta!r} must be greater than 1 with YaRN")
        experts = _integer("num_local_experts", self.num_local_experts, minimum=0)
        if experts * self.num_hidden_layers > _EXPERT_LIMIT:
            raise ConfigError(f"num_local_experts={experts}: in all layers at most {_EXPERT_LIMIT} are accepted")
        _integer("num_experts_per_tok", self.num_experts_per_tok, minimum=min(experts, 1))
        if self.num_experts_per_tok > experts:
            raise ConfigError(f"num_experts_per_tok={self.num_experts_per_tok}, and num_local_experts={experts}")
        for name in ("initializer_range", "attention_dropout"):
            if _real(name, getattr(self, name)) < 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must not be negative")
        for name in ("use_cache", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={_show(getattr(self, name))} must be true or false")
        for name in ("pad_token_id", "bos_token_id"):
            if getattr(self, name) is not None:
                _integer(name, getattr(self, name), minimum=-1)
        for token in self.eos_token_ids:
            _integer("eos_token_id", token, minimum=-1)
        windows = self.sliding_window if isinstance(self.sliding_window, tuple) else (self.sliding_window,)
        if not windows or len(windows) > self.num_hidden_layers:
            raise ConfigError(
                f"sliding_window has {len(windows)} entries for num_hidden_layers={self.num_hidden_layers}"
            )
        for window in windows:
            if window is not None:
                _integer("sliding_window", window, minimum=1)

    @property
    def layer_windows(self) -> tuple[Window, ...]:
        """The window of each layer, `num_hidden_layers` entries."""
        pattern = self.sliding_window if isinstance(self.sliding_window, tuple) else (self.sliding_window,)
        return tuple(pattern[i % len(pattern)] for i in range(self.num_hidden_layers))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a text; HF allows one id, a list, or none."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def with_window(self, window: Window | tuple[Window, ...]) -> "MistralConfig":
        """A copy in which the layers have this window (None: plain causal)."""
        return replace(self, sliding_window=window)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MistralConfig":
        """Read the keys of an HF `config.json`: old `rope_theta`, new `rope_parameters`, `layer_types`.

        Of a model that sees as well, whose `text_config` holds the language model's, that.
        """
        values = _text_part(data)
        kind = values.get("model_type")
        values = {**(_OF_CLASS.get(kind, {}) if isinstance(kind, str) else {}), **values}
        return cls._of(values, **rope_from_hf(values))

    @classmethod
    def from_params(cls, data: Mapping[str, Any]) -> "MistralConfig":
        """Read the keys of a raw Mistral `params.json`.

        Source: mistral-inference `args.py`; without `rope_theta` it is 1e4 (7B v0.1's file has none), without
        `n_kv_heads` it is `n_heads`, without a window the attention is plain causal.
        """
        values = {_RAW_TO_HF.get(name, name): value for name, value in data.items()}
        window = values.pop("_sliding_window", None)
        values["sliding_window"] = values.get("sliding_window", window)
        values.setdefault("num_key_value_heads", values.get("num_attention_heads", cls.num_attention_heads))
        values |= _experts(values.pop("moe", None))
        return cls._of(values, **rope_from_params(values), **rope_from_hf(values))

    @classmethod
    def _of(cls, values: dict[str, Any], **more: Any) -> "MistralConfig":
        values["sliding_window"] = _windows(values)
        known = {f.name for f in fields(cls)} - set(_NOT_IN_HF)
        own = {name: values[name] for name in known & values.keys()}
        extra = {name: value for name, value in values.items() if name not in known}
        return cls(**{**own, **more}, extra=extra)

    @classmethod
    def from_file(cls, path: str | Path) -> "MistralConfig":
        """Read `config.json` (HF) or `params.json` (raw Mistral), told apart by their keys."""
        path = Path(path)
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error

    @classmethod
    def from_json(cls, text: bytes, source: str) -> "MistralConfig":
        """Read the content of such a file; `source` names it in errors."""
        try:
            data = json.loads(text.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{source}: holds no JSON object")
        try:
            return cls.from_params(data) if "dim" in data else cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The keys of an HF `config.json`, unknown ones included; `from_dict` gives an equal config back.

        Raises ConfigError if YaRN and the scale of queries have different original lengths, which has no such keys.
        """
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _NOT_IN_HF}
        if not self.num_local_experts:
            del own["num_local_experts"], own["num_experts_per_tok"]
        if self.yarn or self.query_scale:
            own["rope_parameters"] = rope_to_hf(self.rope_theta, self.yarn, self.query_scale)
        if isinstance(self.eos_token_id, tuple):
            own["eos_token_id"] = list(self.eos_token_id)
        if isinstance(self.sliding_window, tuple):
            own["sliding_window"] = list(self.sliding_window)
        return {**own, **self.extra}


def _integer(name: str, value: object, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= _LIMIT:
        raise ConfigError(f"{name}={_show(value)} must be an integer from {minimum} to {_LIMIT}")
    return value


def _real(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_REAL_LIMIT <= value <= _REAL_LIMIT:
        raise ConfigError(f"{name}={_show(value)} must be a finite number")
    return float(value)


def _show(value: object) -> str:
    """A repr that is short for every value: `[1, 2, 3, 4, 5, 6, ...]`."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "(a huge integer)"


def _no_constant(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")


def _text_part(data: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's keys of a `config.json`, and how all weights are stored."""
    text = data.get("text_config")
    if not isinstance(text, Mapping):
        return dict(data)
    common = ("quantization", "quantization_config", "tie_word_embeddings")
    return {**{name: data[name] for name in common if name in data}, **text}


def _experts(given: object) -> dict[str, Any]:
    """`moe` of a `params.json`."""
    if not given:
        return {}
    known = {"num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok"}
    if not isinstance(given, Mapping) or given.keys() != known.keys():
        raise ConfigError(f"moe={_show(given)}: {' and '.join(known)} are supported, and both are needed")
    return {known[name]: value for name, value in given.items()}


def _windows(values: dict[str, Any]) -> Window | tuple[Window, ...]:
    """`sliding_window` (an int, null or a list), with HF's `layer_types` folded into it."""
    window = values.get("sliding_window", MistralConfig.sliding_window)
    kinds = values.pop("layer_types", None)
    if kinds is None:
        return tuple(window) if isinstance(window, list) else window
    if not isinstance(kinds, list) or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise ConfigError(f"layer_types={_show(kinds)}: only 'full_attention' and 'sliding_attention' are known")
    if len(kinds) != values.get("num_hidden_layers", MistralConfig.num_hidden_layers):
        raise ConfigError(f"layer_types has {len(kinds)} entries, one per layer is needed")
    if isinstance(window, list | dict):
        raise ConfigError(f"sliding_window={_show(window)} must be one number or null beside layer_types")
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows[0] if len(set(windows)) == 1 else windows
