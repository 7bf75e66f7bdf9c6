"""Rows of q and k projections in formats that store them for interleaved RoPE: into the canonical order."""

from mistral_portable.config import MistralConfig
from mistral_portable.weights import DenseTensor, QuantTensor
from mistral_portable.weights.names import half_split_order

__all__ = ["half_split_rows"]


def half_split_rows(up: DenseTensor | QuantTensor, weight: str, config: MistralConfig) -> DenseTensor | QuantTensor:
    """The up matrix of a weight with rows in half-split order; as it is for other weights and for wrong shapes."""
    for module, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if weight.endswith(f".self_attn.{module}.weight") and up.shape[0] == heads * config.head_dim:
            return up.permute_rows(half_split_order(heads, config.head_dim))
    return up
