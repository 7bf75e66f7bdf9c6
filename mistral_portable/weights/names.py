"""Tensor names and RoPE layouts: maps those of every format to those of HF checkpoints, and back."""

import re

import numpy as np
from numpy.typing import NDArray

from mistral_portable.config import MistralConfig
from mistral_portable.weights.source import Tensor

__all__ = ["from_gguf", "from_hf", "from_raw", "half_split", "half_split_order", "interleaved", "to_gguf", "to_raw"]

_GGUF = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "block_sparse_moe.gate",
}
_RAW = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
}
_RAW_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.gate": "block_sparse_moe.gate",
}
_TO_GGUF = {hf: gguf for gguf, hf in (_GGUF | _GGUF_LAYER).items()}
_TO_RAW = {hf: raw for raw, hf in (_RAW | _RAW_LAYER).items()}
_HF_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)", re.ASCII)
_RAW_LAYER_NAME = re.compile(r"layers\.(\d+)\.(.+)", re.ASCII)
_RAW_EXPERT = re.compile(r"feed_forward\.(experts\.\d+\.w[123])", re.ASCII)
_RAW_MIXTRAL = re.compile(r"layers\.\d+\.block_sparse_moe\.(gate\.weight|w[123])", re.ASCII)
_HF_EXPERT = re.compile(r"block_sparse_moe\.(experts\.\d+\.w[123])", re.ASCII)
_GGUF_EXPERT = re.compile(r"ffn_(gate|up|down)\.(\d+)", re.ASCII)  # older files store each expert by itself
_OF_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)", re.ASCII)


def from_hf(name: str) -> str:
    """The canonical HF name of a tensor in an HF checkpoint.

    Checkpoints of the bare model have no `model.`: `norm.weight` -> `model.norm.weight`. Multimodal models store
    the language model's as `language_model.model.norm.weight` (transformers 4) or `model.language_model.norm.weight`.
    """
    name = name.removeprefix("language_model.")
    if name.startswith("model.language_model."):
        name = "model." + name.removeprefix("model.language_model.")
    if name.startswith(("embed_tokens.", "layers.", "norm.")):
        name = f"model.{name}"
    return name.replace(".mlp.gate.", ".block_sparse_moe.gate.")  # Mixtral's router as transformers' modules name it


def from_gguf(name: str) -> str:
    """The HF name: `blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`; unknown names stay unchanged."""
    if match := _LAYER.fullmatch(name):
        index, module, kind = match.groups()
        if expert := _GGUF_EXPERT.fullmatch(module):
            own = f"experts.{expert[2]}.{_OF_EXPERT[expert[1]]}"
            return f"model.layers.{index}.block_sparse_moe.{own}.{kind}"
        return f"model.layers.{index}.{_GGUF_LAYER[module]}.{kind}" if module in _GGUF_LAYER else name
    module, _, kind = name.rpartition(".")
    return f"{_GGUF[module]}.{kind}" if module in _GGUF else name


def from_raw(name: str) -> str:
    """The HF name: `layers.0.attention.wq.weight` -> `model.layers.0.self_attn.q_proj.weight`.

    Unknown names stay unchanged. Mixtral's first files have `layers.0.block_sparse_moe.gate.weight`, and `.w1`, `.w2`,
    `.w3` that hold all experts.
    """
    if _RAW_MIXTRAL.fullmatch(name):
        return f"model.{name}"
    module, _, kind = name.rpartition(".")
    if match := _RAW_LAYER_NAME.fullmatch(module):
        index, module = match.groups()
        if expert := _RAW_EXPERT.fullmatch(module):
            return f"model.layers.{index}.block_sparse_moe.{expert[1]}.{kind}"
        return f"model.layers.{index}.{_RAW_LAYER[module]}.{kind}" if module in _RAW_LAYER else name
    return f"{_RAW[module]}.{kind}" if module in _RAW else name


def to_gguf(name: str) -> str:
    """The GGUF name of a parameter of a decoder: inverse of `from_gguf`. Raises KeyError for other names."""
    module, _, kind = name.rpartition(".")
    if match := _HF_LAYER_NAME.fullmatch(module):
        return f"blk.{match[1]}.{_TO_GGUF[match[2]]}.{kind}"
    return f"{_TO_GGUF[module]}.{kind}"


def to_raw(name: str) -> str:
    """The raw name of a parameter of a decoder: inverse of `from_raw`. Raises KeyError for other names."""
    module, _, kind = name.rpartition(".")
    if match := _HF_LAYER_NAME.fullmatch(module):
        if expert := _HF_EXPERT.fullmatch(match[2]):
            return f"layers.{match[1]}.feed_forward.{expert[1]}.{kind}"
        return f"layers.{match[1]}.{_TO_RAW[match[2]]}.{kind}"
    return f"{_TO_RAW[module]}.{kind}"


def half_split_order(heads: int, head_dim: int) -> NDArray[np.intp]:
    """The row order, [heads * head_dim], that turns interleaved RoPE pairs into HF's half-split pairs.

    Interleaved RoPE rotates rows (2i, 2i+1) of a head together, half-split RoPE rows (i, i + head_dim/2).
    Example: `half_split_order(heads=1, head_dim=6)` is `[0, 2, 4, 1, 3, 5]`. Source: `permute` in transformers'
    `convert_llama_weights_to_hf.py`; llama.cpp's conversion applies the inverse.
    """
    rows = np.arange(heads * head_dim, dtype=np.intp)
    return rows.reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def half_split(tensor: Tensor, config: MistralConfig) -> Tensor:
    """Permute the rows of a q or k projection from interleaved to half-split RoPE; other tensors are returned as is."""
    order = _order(tensor, config)
    return tensor if order is None else tensor.permute_rows(order)


def interleaved(tensor: Tensor, config: MistralConfig) -> Tensor:
    """Permute rows from half-split to interleaved RoPE, as raw and GGUF files store them: inverse of `half_split`."""
    order = _order(tensor, config)
    return tensor if order is None else tensor.permute_rows(np.argsort(order))


def _order(tensor: Tensor, config: MistralConfig) -> NDArray[np.intp] | None:
    for module, heads in (
        ("q_proj", config.num_attention_heads),
        ("k_proj", config.num_key_value_heads),
    ):
        rows = heads * config.head_dim
        # Tensors of a wrong shape are returned as is: `check_tensors` reports all of them.
        if tensor.name.endswith(f".self_attn.{module}.weight") and tensor.shape[:1] == (rows,):
            return half_split_order(heads, config.head_dim)
    return None
