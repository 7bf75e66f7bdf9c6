"""MistralConfig: the numbers that define a model, with their checks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mistral_portable.config.checks import integer, real, show
from mistral_portable.config.hf import fields_from_hf, fields_to_hf
from mistral_portable.config.params import fields_from_params, fields_to_params
from mistral_portable.config.rope_scaling import LongRope, QueryScale, RopeScaling, Yarn
from mistral_portable.errors import ConfigError
from mistral_portable.git_lfs import pointer

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
# Far above any model: they keep a hostile file from causing huge tables before a tensor is seen.
_LAYER_LIMIT = 1000
_HEAD_LIMIT = 2**16
_THETAS = (1e-6, 1e18)
_EXPERT_LIMIT = 2**14  # in all layers: each has three tensors


@dataclass(frozen=True)
class MistralConfig:
    """Shape and constants of a Mistral decoder; field names and defaults are those of transformers.

    `sliding_window` is an int W (a query sees W keys, itself included), None (plain causal), or a tuple that
    is repeated over the layers: `(None, 8)` on 4 layers gives the windows None, 8, None, 8 (`layer_windows`).
    `num_local_experts` (Mixtral) is the number of MLPs in each layer, and each token is routed to
    `num_experts_per_tok` of them; 0: one plain MLP. `extra` keeps the keys of a `config.json` that this class does not
    know; `to_dict` writes them back.

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
    rope_scaling: RopeScaling | None = None
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
            integer(name, getattr(self, name), minimum=1)
        if self.num_hidden_layers > _LAYER_LIMIT:
            raise ConfigError(f"num_hidden_layers={self.num_hidden_layers}: at most {_LAYER_LIMIT} are accepted")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        integer("head_dim", 0 if self.head_dim is None else self.head_dim, minimum=0)
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size={self.hidden_size} is not a multiple of "
                    f"num_attention_heads={self.num_attention_heads}: set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if integer("head_dim", self.head_dim, minimum=2) > _HEAD_LIMIT:
            raise ConfigError(f"head_dim={self.head_dim}: at most {_HEAD_LIMIT} are accepted")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim={self.head_dim} must be even: RoPE rotates pairs")
        if self.hidden_act != "silu":
            raise ConfigError(f"hidden_act={show(self.hidden_act)} is not supported: Mistral models use 'silu'")
        for name in ("rms_norm_eps", "rope_theta"):
            if real(name, getattr(self, name)) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be positive")
        if not _THETAS[0] <= self.rope_theta <= _THETAS[1]:
            raise ConfigError(f"rope_theta={self.rope_theta!r} must be from {_THETAS[0]} to {_THETAS[1]}")
        if self.yarn and self.rope_theta <= 1:
            raise ConfigError(f"rope_theta={self.rope_theta!r} must be greater than 1 with YaRN")
        if isinstance(scaling := self.rope_scaling, LongRope):
            is_long = self.max_position_embeddings > scaling.original_max_position_embeddings
            object.__setattr__(self, "rope_scaling", replace(scaling, is_long=is_long))
        if self.rope_scaling:
            self.rope_scaling.frequencies(self.head_dim, self.rope_theta)  # which checks that they fit
        experts = integer("num_local_experts", self.num_local_experts, minimum=0)
        if experts * self.num_hidden_layers > _EXPERT_LIMIT:
            raise ConfigError(f"num_local_experts={experts}: in all layers at most {_EXPERT_LIMIT} are accepted")
        integer("num_experts_per_tok", self.num_experts_per_tok, minimum=min(experts, 1))
        if self.num_experts_per_tok > experts:
            raise ConfigError(f"num_experts_per_tok={self.num_experts_per_tok} exceeds num_local_experts={experts}")
        for name in ("initializer_range", "attention_dropout"):
            if real(name, getattr(self, name)) < 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must not be negative")
        for name in ("use_cache", "tie_word_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={show(getattr(self, name))} must be true or false")
        for name in ("pad_token_id", "bos_token_id"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), minimum=-1)
        for token in self.eos_token_ids:
            integer("eos_token_id", token, minimum=-1)
        windows = self.sliding_window if isinstance(self.sliding_window, tuple) else (self.sliding_window,)
        if not windows or len(windows) > self.num_hidden_layers:
            raise ConfigError(
                f"sliding_window has {len(windows)} entries for num_hidden_layers={self.num_hidden_layers}"
            )
        for window in windows:
            if window is not None:
                integer("sliding_window", window, minimum=1)

    @property
    def yarn(self) -> Yarn | None:
        """The `rope_scaling`, if it is YaRN."""
        return self.rope_scaling if isinstance(self.rope_scaling, Yarn) else None

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
        """Read the keys of an HF `config.json`, old and new spellings; unknown keys become `extra`.

        Multimodal configs: the language model's keys are read from `text_config`. Raises ConfigError for impossible or
        unsupported values.
        """
        return cls(**fields_from_hf(data, cls._defaults()))

    @classmethod
    def from_params(cls, data: Mapping[str, Any]) -> "MistralConfig":
        """Read the keys of a raw Mistral `params.json`; unknown keys become `extra`.

        Raises ConfigError for impossible or unsupported values.
        """
        return cls(**fields_from_params(data, cls._defaults()))

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {own.name: own.default for own in fields(cls)}

    @classmethod
    def from_file(cls, path: str | Path) -> "MistralConfig":
        """Read `config.json` (HF) or `params.json` (raw Mistral), told apart by their keys.

        Raises ConfigError, which begins with the path, for unreadable files, invalid JSON and impossible values.
        """
        path = Path(path)
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error

    @classmethod
    def from_json(cls, text: bytes, source: str) -> "MistralConfig":
        """Read the content of a `config.json` or `params.json`; `source` names it in errors.

        Raises ConfigError for invalid JSON, git-lfs pointers and impossible values.
        """
        if said := pointer(text):
            raise ConfigError(f"{source} {said}")
        try:
            data = json.loads(text.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{source}: not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{source}: is not a JSON object")
        try:
            return cls.from_params(data) if "dim" in data else cls.from_dict(data)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The keys of an HF `config.json`, unknown ones included; `from_dict` gives an equal config back.

        Raises ConfigError if YaRN and the query scale have different original lengths, which no key can express.
        """
        return fields_to_hf(self._values())

    def to_params(self) -> dict[str, Any]:
        """The keys of a raw `params.json`, without `extra`; `from_params` reads them.

        Raises ConfigError for RoPE that no key can express.
        """
        return fields_to_params(self._values(), self.layer_windows, self._defaults())

    def _values(self) -> dict[str, Any]:
        return {own.name: getattr(self, own.name) for own in fields(self)}


def _no_constant(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")
