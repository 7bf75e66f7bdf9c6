"""The published models: their real configurations, and how one is made small without losing what is special in it."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mistral_portable.config import MistralConfig, QueryScale, Window, Yarn

__all__ = ["FAMILIES", "shrunk"]


def _config(
    hidden: int, layers: int, heads: int, ffn: int, vocab: int, theta: float, context: int, **more: Any
) -> MistralConfig:
    return MistralConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_theta=theta,
        **{"sliding_window": None, **more},
    )


def _scaled(factor: float, original: int, beta: float = 0.1, **more: Any) -> dict[str, Any]:
    """YaRN, with an attention factor of 1 if nothing else is said, and the scale of queries."""
    yarn = Yarn(factor, original, **{"attention_factor": 1.0, **more})
    return {"rope_scaling": yarn, "query_scale": QueryScale(beta, original) if beta else None}


_7B = (4096, 32, 32, 14336)
_22B = (6144, 56, 48, 16384)
_24B = (5120, 40, 32, 32768)
_123B = (12288, 88, 96, 28672)
_LONG = _scaled(64, 4096, 0, beta_fast=4, attention_factor=None)
_MIXED: tuple[Window, ...] = (None, 32768, 32768, 32768)
_MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2}

FAMILIES: Mapping[str, MistralConfig] = MappingProxyType(
    {
        "7B v0.1": _config(*_7B, 32000, 1e4, 32768, sliding_window=4096),
        "7B v0.2": _config(*_7B, 32000, 1e6, 32768),
        "7B v0.3": _config(*_7B, 32768, 1e6, 32768),
        "Mathstral 7B": _config(*_7B, 32768, 1e6, 32768),
        "Codestral 22B": _config(*_22B, 32768, 1e6, 32768),
        "Nemo 12B": _config(5120, 40, 32, 14336, 131072, 1e6, 131072),
        "Small 22B": _config(*_22B, 32768, 1e6, 32768),
        "Small 24B": _config(*_24B, 131072, 1e8, 32768),
        "Devstral Small 24B": _config(*_24B, 131072, 1e9, 131072),
        "Magistral Small 1.2 24B": _config(*_24B, 131072, 1e9, 131072),
        "Ministral 8B": _config(4096, 36, 32, 12288, 131072, 1e8, 131072, sliding_window=_MIXED),
        "Ministral 3 3B": _config(
            3072, 26, 32, 9216, 131072, 1e6, 262144, tie_word_embeddings=True, **_scaled(16, 16384)
        ),
        "Ministral 3 8B": _config(4096, 34, 32, 14336, 131072, 1e6, 262144, **_scaled(16, 16384)),
        "Ministral 3 14B": _config(5120, 40, 32, 16384, 131072, 1e9, 262144, **_scaled(16, 16384)),
        "Devstral Small 2 24B": _config(*_24B, 131072, 1e8, 393216, **_scaled(48, 8192)),
        "Devstral 2 123B": _config(*_123B, 131072, 1e6, 262144, **_LONG),
        "Medium 3.5 128B": _config(*_123B, 131072, 1e6, 262144, **_LONG),
        "Mixtral 8x7B": _config(*_7B, 32000, 1e6, 32768, **_MIXTRAL),
        "Mixtral 8x22B": _config(*_22B, 32768, 1e6, 65536, **_MIXTRAL),
    }
)
"""Name -> configuration, from the public ones."""


def shrunk(config: MistralConfig, *, columns: int = 32) -> MistralConfig:
    """A model with all features of `config` that a text of 40 tokens shows, and weights of some hundred kilobytes.

    Layers: 2, or one turn of windows. Heads: as many queries to a key as before, but at most 6. head_dim and sizes are
    multiples of `columns`, and heads times head_dim is not the hidden size where it was not. Windows are 8, original
    lengths of YaRN and queries 8 tokens.
    """
    windows = config.sliding_window if isinstance(config.sliding_window, tuple) else (config.sliding_window,)
    group = min(config.num_attention_heads // config.num_key_value_heads, 6)
    square = config.hidden_size == config.num_attention_heads * config.head_dim
    short: Any = {"original_max_position_embeddings": 8}
    pattern = tuple(window and 8 for window in windows)
    return replace(
        config,
        vocab_size=64,
        hidden_size=columns * group if square else columns * (group + 1),
        intermediate_size=3 * columns,
        num_hidden_layers=max(2, len(windows)),
        num_attention_heads=group,
        num_key_value_heads=1,
        head_dim=columns,
        max_position_embeddings=8 * int(config.yarn.factor) if config.yarn else 256,
        sliding_window=pattern if len(pattern) > 1 else pattern[0],
        rope_scaling=config.yarn and replace(config.yarn, **short),
        query_scale=config.query_scale and replace(config.query_scale, **short),
    )
