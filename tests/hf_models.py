"""transformers' models for any config of this package, with the same weights."""

from typing import Any

import torch
import transformers

from mistral_portable.config import MistralConfig
from mistral_portable.config.hf import rope_to_hf
from mistral_portable.graph import build
from mistral_portable.testing import random_weights

__all__ = ["has_class", "hf_model"]


def has_class(config: MistralConfig) -> bool:
    """Whether transformers has a class for the config; none has windows that differ beside anything else."""
    windows = set(config.layer_windows)
    mixed = len(windows) > 1
    if len(windows - {None}) > 1 or (mixed and (config.yarn or config.query_scale or config.num_local_experts)):
        return False
    return not (config.num_local_experts and config.query_scale)


def hf_model(config: MistralConfig, seed: int) -> Any:
    """The model of transformers' class for the config, float32, eager attention, weights of `random_weights`."""
    windows = config.layer_windows
    keys = {**config.to_dict(), "attn_implementation": "eager", "experts_implementation": "eager"}
    keys["sliding_window"] = next((window for window in windows if window is not None), None)
    keys["rope_parameters"] = rope_to_hf(config.rope_theta, config.rope_scaling, config.query_scale)
    model: Any
    if config.num_local_experts:
        keys["rope_parameters"].pop("llama_4_scaling_beta", None)
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**keys))
    elif config.yarn or config.query_scale:
        model = transformers.Ministral3ForCausalLM(transformers.Ministral3Config(**keys))
    elif len(set(windows)) > 1:
        keys["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]
        model = transformers.MinistralForCausalLM(transformers.MinistralConfig(**keys))
    else:
        model = transformers.MistralForCausalLM(transformers.MistralConfig(**keys))
    weights = random_weights(build(config), seed)
    model.load_state_dict(_fused({name: torch.from_numpy(w.numpy()) for name, w in weights.items()}, config))
    return model.eval()


def _fused(state: dict[str, torch.Tensor], config: MistralConfig) -> dict[str, torch.Tensor]:
    """Weights under transformers' names of experts, with the second copy of a tied head."""
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if not config.num_local_experts:
        return state
    made = {
        name.replace("block_sparse_moe.gate", "mlp.gate"): t for name, t in state.items() if ".experts." not in name
    }
    for layer in range(config.num_hidden_layers):
        names = [f"model.layers.{layer}.block_sparse_moe.experts.{e}" for e in range(config.num_local_experts)]
        both = [torch.cat([state[f"{name}.w1.weight"], state[f"{name}.w3.weight"]]) for name in names]
        made[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.stack(both)
        made[f"model.layers.{layer}.mlp.experts.down_proj"] = torch.stack([state[f"{n}.w2.weight"] for n in names])
    return made
