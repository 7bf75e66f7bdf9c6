"""The mapping of names and RoPE row orders from all formats to HF's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from weights.files import shapes, small_config

from mistral_portable.weights.names import from_gguf, from_hf, from_raw, half_split_order, to_gguf, to_raw

LAYER = {  # HF: GGUF, raw
    "input_layernorm": ("attn_norm", "attention_norm"),
    "self_attn.q_proj": ("attn_q", "attention.wq"),
    "self_attn.k_proj": ("attn_k", "attention.wk"),
    "self_attn.v_proj": ("attn_v", "attention.wv"),
    "self_attn.o_proj": ("attn_output", "attention.wo"),
    "post_attention_layernorm": ("ffn_norm", "ffn_norm"),
    "mlp.gate_proj": ("ffn_gate", "feed_forward.w1"),
    "mlp.up_proj": ("ffn_up", "feed_forward.w3"),
    "mlp.down_proj": ("ffn_down", "feed_forward.w2"),
}
TOP = {
    "model.embed_tokens": ("token_embd", "tok_embeddings"),
    "model.norm": ("output_norm", "norm"),
    "lm_head": ("output", "output"),
}


def test_every_parameter_has_a_name_in_every_format() -> None:
    names = {f"{hf}.weight": (f"{gguf}.weight", f"{raw}.weight") for hf, (gguf, raw) in TOP.items()}
    for hf, (gguf, raw) in LAYER.items():
        names[f"model.layers.1.{hf}.weight"] = f"blk.1.{gguf}.weight", f"layers.1.{raw}.weight"
    assert set(names) == {name for name in shapes(small_config()) if ".layers.0." not in name}
    for hf, (gguf, raw) in names.items():
        assert (from_gguf(gguf), to_gguf(hf)) == (hf, gguf)
        assert (from_raw(raw), to_raw(hf)) == (hf, raw)
        assert from_hf(hf) == from_hf(hf.removeprefix("model.")) == hf


@pytest.mark.parametrize(
    "name", ["score.weight", "rope_freqs.weight", "blk.0.attn_rot.weight", "blk.x.attn_q.weight", "vision_encoder.w"]
)
def test_unknown_names_stay_as_they_are(name: str) -> None:
    assert from_gguf(name) == from_hf(name) == from_raw(name) == name


def test_half_split_order_of_one_head() -> None:
    assert half_split_order(heads=1, head_dim=6).tolist() == [0, 2, 4, 1, 3, 5]


@given(
    heads=st.integers(1, 4),
    half=st.integers(1, 8),
    positions=st.lists(st.integers(0, 100), min_size=2, max_size=2),
    seed=st.integers(0, 2**32 - 1),
)
def test_permuted_rows_give_the_scores_of_interleaved_rope(
    heads: int, half: int, positions: list[int], seed: int
) -> None:
    """The permutation keeps attention scores unchanged when the RoPE layout changes."""
    rng = np.random.default_rng(seed)
    dim, hidden = 2 * half, 5
    x = rng.normal(size=(2, hidden))
    q, k = rng.normal(size=(2, heads * dim, hidden))  # stored for interleaved RoPE
    order = half_split_order(heads, dim)
    interleaved = [_rope_interleaved((w @ x[i]).reshape(heads, dim), positions[i]) for i, w in enumerate((q, k))]
    half_split = [_rope_half_split((w[order] @ x[i]).reshape(heads, dim), positions[i]) for i, w in enumerate((q, k))]
    np.testing.assert_allclose(
        (half_split[0] * half_split[1]).sum(-1), (interleaved[0] * interleaved[1]).sum(-1), atol=1e-12
    )


def _angles(dim: int, position: int) -> NDArray[np.float64]:
    return position * 10000.0 ** (-np.arange(0, dim, 2) / dim)


def _rope_interleaved(head: NDArray[np.float64], position: int) -> NDArray[np.float64]:
    """Raw Mistral: element pairs (2i, 2i+1) are complex numbers, rotated by the angle i."""
    turned = (head[:, 0::2] + 1j * head[:, 1::2]) * np.exp(1j * _angles(head.shape[1], position))
    return np.stack([turned.real, turned.imag], axis=-1).reshape(head.shape)


def _rope_half_split(head: NDArray[np.float64], position: int) -> NDArray[np.float64]:
    """HF: elements (i, i + dim/2) are a pair."""
    angles = _angles(head.shape[1], position)
    first, second = np.split(head, 2, axis=1)
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
    )
