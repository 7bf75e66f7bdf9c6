"""The embedded model in plain torch: weights by their Hugging Face names, a forward pass, export.

Used by `tools/train_tiny.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional as F

from tools.tiny_tokens import BOS, EOS, VOCAB, WINDOW

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 256, 4, 8, 2, 32, 768
EPS, THETA = 1e-5, 10000.0
INIT_STD = 0.0625  # 1 / sqrt(hidden): attention starts with scores of order 1

Weights = dict[str, Tensor]

CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": INIT_STD,
    "rms_norm_eps": EPS,
    "rope_theta": THETA,
    "sliding_window": WINDOW,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
}


def init_weights(seed: int) -> Weights:
    """Normal weights; the matrices that write to the residual stream start smaller, as in GPT-2."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * INIT_STD * scale

    residual = (2 * LAYERS) ** -0.5
    weights = {"model.embed_tokens.weight": normal(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": torch.ones(HIDDEN),
            prefix + "self_attn.q_proj.weight": normal(HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.k_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.v_proj.weight": normal(KV_HEADS * HEAD_DIM, HIDDEN),
            prefix + "self_attn.o_proj.weight": normal(HIDDEN, HEADS * HEAD_DIM, residual),
            prefix + "post_attention_layernorm.weight": torch.ones(HIDDEN),
            prefix + "mlp.gate_proj.weight": normal(FFN, HIDDEN),
            prefix + "mlp.up_proj.weight": normal(FFN, HIDDEN),
            prefix + "mlp.down_proj.weight": normal(HIDDEN, FFN, residual),
        }
    return weights | {"model.norm.weight": torch.ones(HIDDEN), "lm_head.weight": normal(VOCAB, HIDDEN)}


def visible(documents: Tensor) -> Tensor:
    """The attention mask, bool [batch, 1, T, T]: the same document, and 0 <= q - k < WINDOW."""
    position = torch.arange(documents.shape[1])
    distance = position[:, None] - position[None, :]
    near = (distance >= 0) & (distance < WINDOW)
    return (near & (documents[:, :, None] == documents[:, None, :]))[:, None]


def rotary(length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, each [length, HEAD_DIM]."""
    frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angles = torch.arange(length)[:, None] * frequencies
    return angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to x, [..., length, HEAD_DIM]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def hidden_states(weights: Weights, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """The embeddings, the output of each layer, and last the normed output, each [batch, T, HIDDEN].

    Positions count along the row, over all its documents: rotary attention depends on differences only.
    """
    batch, length = ids.shape
    cos, sin = rotary(length)
    x = F.embedding(ids, weights["model.embed_tokens.weight"])
    states = [x]

    def norm(name: str) -> Tensor:
        return F.rms_norm(x, (HIDDEN,), weights[name], EPS)

    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        h = norm(prefix + "input_layernorm.weight")
        # One product for q, k and v and one for gate and up: faster than five small ones.
        qkv = F.linear(h, torch.cat([weights[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]))
        heads = qkv.view(batch, length, -1, HEAD_DIM).transpose(1, 2)
        q, k, v = torch.split(heads, [HEADS, KV_HEADS, KV_HEADS], 1)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (rotate(k, cos, sin), v))
        h = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, attn_mask=mask)
        x = x + F.linear(h.transpose(1, 2).flatten(2), weights[prefix + "self_attn.o_proj.weight"])
        h = norm(prefix + "post_attention_layernorm.weight")
        both = torch.cat([weights[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")])
        gate, up = F.linear(h, both).chunk(2, -1)
        x = x + F.linear(F.silu(gate) * up, weights[prefix + "mlp.down_proj.weight"])
        states.append(x)
    return [*states, norm("model.norm.weight")]


def attention_logs(weights: Weights, states: list[Tensor], mask: Tensor, layer: int, head: int) -> Tensor:
    """Log-probabilities [batch, T, T] of one attention head, from the hidden states."""
    prefix = f"model.layers.{layer}."
    h = F.rms_norm(states[layer], (HIDDEN,), weights[prefix + "input_layernorm.weight"], EPS)
    group = head * KV_HEADS // HEADS
    cos, sin = rotary(h.shape[1])
    q, k = (
        rotate(F.linear(h, weights[f"{prefix}self_attn.{part}_proj.weight"][first : first + HEAD_DIM]), cos, sin)
        for part, first in (("q", head * HEAD_DIM), ("k", group * HEAD_DIM))
    )
    scores: Tensor = q @ k.mT * HEAD_DIM**-0.5
    return scores.masked_fill(~mask[:, 0], float("-inf")).log_softmax(-1)


def forward(weights: Weights, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits [batch, T, VOCAB]."""
    return F.linear(hidden_states(weights, ids, mask)[-1], weights["lm_head.weight"])


def rounded(weights: Weights) -> Weights:
    """The weights rounded to bfloat16, as they are stored."""
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}


def export(weights: Weights, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    (folder / "model.safetensors").write_bytes(to_bytes(rounded(weights), metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
