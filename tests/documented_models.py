"""Models of drawn configs, as the documented classes and as transformers' classes, and padded batches for them."""

from typing import Any

import numpy as np
import torch
import transformers
from hypothesis import strategies as st
from transformers import MistralConfig as TheirConfig

from mistral_portable import transformers as ours
from mistral_portable.boundary import ExecutorOptions
from mistral_portable.weights import DenseTensor

HEADS = (
    "MistralModel",
    "MistralForCausalLM",
    "MistralForSequenceClassification",
    "MistralForTokenClassification",
    "MistralForQuestionAnswering",
)
"""The five classes, which have the same names here and in transformers."""

VALUES: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "sliding_window": 4,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "num_labels": 3,
    "pad_token_id": 0,
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a config; windows are None or from 2 on, as transformers' cache is broken for a window of 1."""
    kv_heads, group, head_dim = draw(st.sampled_from([(1, 1, 4), (1, 3, 4), (2, 2, 8), (3, 1, 2)]))
    return {
        "vocab_size": draw(st.integers(5, 40)),
        "hidden_size": draw(st.sampled_from([8, 12, 20])),
        "intermediate_size": draw(st.integers(4, 20)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "sliding_window": draw(st.none() | st.integers(2, 8)),
        "rope_theta": draw(st.sampled_from([10000.0, 1e6])),
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "num_labels": draw(st.integers(1, 4)),
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": 0,
    }


def pair(name: str, values: dict[str, Any], seed: int, dtype: str = "float32") -> tuple[Any, Any]:
    """The model here, on the reference in `dtype`, and transformers' in float32, with the same weights."""
    torch.manual_seed(seed)
    values = dict(values)
    theta = values.pop("rope_theta")
    rope = {"rope_type": "default", "rope_theta": theta}
    their_config = TheirConfig(**values, rope_parameters=rope)
    their_config._attn_implementation = "eager"  # which alone returns attention weights
    theirs = getattr(transformers, name)(their_config)
    prefix = "model." if name == "MistralModel" else ""
    tensors = {
        prefix + key: DenseTensor(prefix + key, "float32", value.numpy()) for key, value in theirs.state_dict().items()
    }
    config = ours.MistralConfig(**values, rope_theta=theta)
    return getattr(ours, name)(
        config, backend="reference", tensors=tensors, options=ExecutorOptions(dtype=dtype)
    ), theirs.eval()


@st.composite
def batches(draw: st.DrawFn, vocab_size: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids [B, T] and their mask, padded on one side."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = random.integers(0, vocab_size, (rows, length))
    mask = np.ones((rows, length), np.int64)
    for row in range(rows):
        pads = draw(st.integers(0, length - 1))
        where = slice(0, pads) if side == "left" else slice(length - pads, length)
        ids[row, where], mask[row, where] = 0, 0
    return ids, mask
