"""Checkpoints that transformers writes open unchanged; GGUF files that the tests write mean the same to it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from weights.files import random_tensors, small_config, write_gguf

from mistral_portable.config import MistralConfig
from mistral_portable.weights import DenseTensor, open_checkpoint


def _hf_config(config: MistralConfig, **more: Any) -> transformers.MistralConfig:
    return transformers.MistralConfig(**(config.to_dict() | more))


def _assert_equal(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Every tensor of `state` is in the checkpoint, bit for bit."""
    tensors = open_checkpoint(path).tensors
    for name, expected in state.items():
        tensor = tensors[name]
        assert isinstance(tensor, DenseTensor)
        assert tensor.dtype == str(expected.dtype).removeprefix("torch.")
        assert tensor.shape == tuple(expected.shape)
        assert np.array_equal(tensor.numpy(), expected.float().numpy()), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
def test_a_saved_causal_lm_opens_unchanged(tmp_path: Path, dtype: str, tied: bool, shard_size: str) -> None:
    config = small_config(tie_word_embeddings=tied, sliding_window=8, num_key_value_heads=1, head_dim=32)
    model = transformers.MistralForCausalLM(_hf_config(config)).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard_size == "40KB")
    state = model.state_dict()
    if tied:  # saved once, under the embedding's name
        del state["lm_head.weight"]
    _assert_equal(tmp_path, state)
    opened = open_checkpoint(tmp_path).config.to_dict()
    assert {name: opened[name] for name in config.to_dict()} == config.to_dict()


@pytest.mark.parametrize(
    "model",
    [
        "MistralModel",
        "MistralForSequenceClassification",
        "MistralForTokenClassification",
        "MistralForQuestionAnswering",
    ],
)
def test_saved_heads_open_unchanged(tmp_path: Path, model: str) -> None:
    saved = getattr(transformers, model)(_hf_config(small_config(), num_labels=3))
    saved.save_pretrained(tmp_path)
    prefix = "model." if model == "MistralModel" else ""
    _assert_equal(tmp_path, {prefix + name: tensor for name, tensor in saved.state_dict().items()})


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_transformers_reads_a_gguf_file_as_we_do(tmp_path: Path, heads: int, quantization: str) -> None:
    """Its q/k permutation and its dequantization are written apart from ours."""
    config = small_config(num_key_value_heads=heads)
    write_gguf(tmp_path / "m.gguf", config, random_tensors(config, np.random.default_rng(0)), quantization)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config.to_dict()))
    peer = load_gguf_checkpoint(tmp_path / "m.gguf", return_tensors=True, model_to_load=model)["tensors"]
    tensors = open_checkpoint(tmp_path / "m.gguf").tensors
    assert peer.keys() == tensors.keys()
    for name, expected in peer.items():
        assert np.array_equal(tensors[name].numpy(), expected.numpy()), name
