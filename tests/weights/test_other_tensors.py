"""Tensors beside the parameters: buffers of other types, biases of zeros, indices in 64 bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from weights import test_awq, test_compressed_tensors, test_gptq
from weights.files import random_tensors, small_config, write_hf
from weights.packed_files import write_packed

import mistral_portable as mp
from mistral_portable import transformers as ours
from mistral_portable.errors import CheckpointError
from mistral_portable.weights import open_checkpoint

CONFIG = small_config(intermediate_size=128)
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
BUFFERS = {
    "model.embed_positions.position_ids": torch.arange(256).reshape(1, 256),
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8, dtype=torch.float64),
    "model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
    "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
    "model.layers.1.self_attn.mask": torch.zeros(4, dtype=torch.uint8),
    "model.layers.1.mlp.seen": torch.zeros((), dtype=torch.int16),
}
NAME = "model.layers.0.self_attn.q_proj.bias"


def add(folder: Path, more: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file(load_file(file) | more, file, {"format": "pt"})


def test_buffers_do_not_matter_as_in_transformers(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    add(tmp_path, BUFFERS)
    theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = theirs(torch.tensor([[1, 2, 3]])).logits[0].numpy()
    np.testing.assert_allclose(mp.load(tmp_path, backend="reference").logits([1, 2, 3]), wanted, rtol=1e-4, atol=1e-4)
    for format in ("hf", "gguf"):
        mp.convert(tmp_path, tmp_path / f"made.{format}", format)
        assert open_checkpoint(tmp_path / f"made.{format}").tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("kind", ["gptq", "awq", "compressed"])
def test_buffers_beside_packed_weights(tmp_path: Path, kind: str) -> None:
    packer: test_gptq.Packer | test_awq.Packer | test_compressed_tensors.Packer
    if kind == "gptq":
        packer, how = test_gptq.Packer(4, 32, True, True, 1), test_gptq.HOW
    elif kind == "awq":
        packer, how = test_awq.Packer(32), test_awq.HOW
    else:
        packer = test_compressed_tensors.Packer(**test_compressed_tensors.SCHEMES["w4a16"])
        how = test_compressed_tensors.HOW
    write_packed(tmp_path, CONFIG, how, packer)
    add(tmp_path, BUFFERS)
    tensors = open_checkpoint(tmp_path).tensors
    for name, values in packer.values.items():
        np.testing.assert_array_equal(tensors[name].numpy(np.float64), values, err_msg=name)
    assert not {name for name, tensor in tensors.items() if tensor.dtype.startswith(("int", "bool", "float64"))}


def test_indices_of_gptq_in_64_bits(tmp_path: Path) -> None:
    packer = test_gptq.Packer(4, 32, True, True, 1)
    stored = write_packed(tmp_path, CONFIG, test_gptq.HOW | {"desc_act": True}, packer)
    add(tmp_path, {name: tensor.long() for name, tensor in stored.items() if name.endswith("g_idx")})
    tensors = open_checkpoint(tmp_path).tensors
    for name, values in packer.values.items():
        np.testing.assert_array_equal(tensors[name].numpy(np.float64), values, err_msg=name)
    far = {"model.layers.1.mlp.up_proj.g_idx": torch.full((64,), 2**62)}
    add(tmp_path, far)
    with pytest.raises(CheckpointError, match=r"int64 \(64,\), does not name one of 2 groups"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["awq", "floats"])
def test_biases_of_zeros_are_dropped_and_others_refused(tmp_path: Path, kind: str) -> None:
    if kind == "awq":
        write_packed(tmp_path, CONFIG, test_awq.HOW, test_awq.Packer(32))
    else:
        write_hf(tmp_path, CONFIG, TENSORS)
    add(tmp_path, {NAME: torch.zeros(64, dtype=torch.float16)})
    assert np.isfinite(mp.load(tmp_path, backend="reference").logits([1, 2, 3])).all()
    add(tmp_path, {NAME: torch.full((64,), 0.5)})
    with pytest.raises(CheckpointError, match="is a bias, which this model has not"):
        mp.load(tmp_path, backend="reference")
    add(tmp_path, {NAME: torch.zeros(64, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=f"'{NAME}' is int32"):
        open_checkpoint(tmp_path)


def test_a_head_keeps_its_bias_of_zeros(tmp_path: Path) -> None:
    """transformers initializes the bias of a token classification with zeros: it is a parameter all the same."""
    values = CONFIG.to_dict() | {"num_labels": 3}
    theirs = transformers.MistralForTokenClassification(transformers.MistralConfig(**values)).eval()
    theirs.save_pretrained(tmp_path)
    mine = ours.MistralForTokenClassification.from_pretrained(tmp_path, backend="reference")
    with torch.no_grad():
        wanted = theirs(torch.tensor([[1, 2, 3]])).logits.numpy()
    np.testing.assert_allclose(mine([[1, 2, 3]]).logits, wanted, rtol=1e-4, atol=1e-4)
