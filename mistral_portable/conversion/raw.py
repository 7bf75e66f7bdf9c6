"""Mistral's own format: `params.json`, `consolidated.safetensors` and the tokenizer file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mistral_portable.config import MistralConfig
from mistral_portable.conversion.hf import tokenizer_file
from mistral_portable.conversion.model import Source
from mistral_portable.conversion.parts import Part, float_part
from mistral_portable.conversion.safetensors import write_safetensors
from mistral_portable.rope_scaling import rope_to_params
from mistral_portable.weights.names import interleaved, to_raw

__all__ = ["plan_raw", "write_raw"]

_PARAMS = {
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
_DEFAULTS = {"max_seq_len": "max_position_embeddings", "tied_embeddings": "tie_word_embeddings"}
"""Parameters that are written only if they are not what their absence means: older readers refuse unknown ones."""


def plan_raw(source: Source) -> list[Part]:
    """All parameters as floats under Mistral's names, q and k rows for interleaved RoPE."""
    return [
        float_part(to_raw(name), interleaved(tensor, source.config), source.float_type(tensor))
        for name, tensor in source.tensors.items()
    ]


def write_raw(folder: Path, source: Source, parts: list[Part], progress: Callable[[Part], None]) -> None:
    """Write the tokenizer, the weights and, last, the `params.json` without which nothing loads."""
    params = _params(source.config)
    if file := tokenizer_file(source):
        (folder / file[0]).write_bytes(file[1])
    write_safetensors(folder / "consolidated.safetensors", parts, {}, progress)
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")


def _params(config: MistralConfig) -> dict[str, Any]:
    params = {raw: getattr(config, name) for raw, name in _PARAMS.items()}
    for raw, name in _DEFAULTS.items():
        if (value := getattr(config, name)) != getattr(MistralConfig, name):
            params[raw] = value
    if config.num_local_experts:
        params["moe"] = {"num_experts": config.num_local_experts, "num_experts_per_tok": config.num_experts_per_tok}
    params |= rope_to_params(config.yarn, config.query_scale)
    windows = config.layer_windows
    if set(windows) != {None}:
        params["sliding_window"] = windows[0] if len(set(windows)) == 1 else list(windows)
    return params
