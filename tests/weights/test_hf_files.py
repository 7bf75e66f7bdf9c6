"""Which files of a Hugging Face folder are read: transformers' order, torch files, indices, tokenizer files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from weights.files import bfloat16, random_tensors, small_config, write_hf, write_safetensors, write_torch

import mistral_portable as mp
from mistral_portable.errors import CheckpointError
from mistral_portable.tokenizer.source import TokenizerFile
from mistral_portable.weights import open_checkpoint

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
OTHERS = random_tensors(CONFIG, np.random.default_rng(1))
INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"


def assert_read(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    found = open_checkpoint(path).tensors
    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        np.testing.assert_array_equal(found[name].numpy(), values, err_msg=name)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_files_are_read_as_by_transformers(tmp_path: Path, shards: int, dtype: str) -> None:
    write_torch(tmp_path, CONFIG, TENSORS, shards, dtype)
    theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    assert_read(tmp_path, {name: theirs[name].float().numpy() for name in TENSORS})
    assert open_checkpoint(tmp_path).format == "torch"
    model = mp.load(tmp_path, backend="reference")
    assert np.isfinite(model.logits([1, 2, 3])).all()


def test_a_torch_file_with_buffers_and_a_tied_head(tmp_path: Path) -> None:
    write_torch(tmp_path, CONFIG, TENSORS)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict() | {"tie_word_embeddings": True}))
    state = {name: torch.tensor(values) for name, values in TENSORS.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state["model.layers.0.self_attn.rotary_emb.position_ids"] = torch.arange(8)
    torch.save(state, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.notices == ()
    assert checkpoint.tensors.keys() == TENSORS.keys() - {"lm_head.weight"}


def test_a_torch_file_by_its_path(tmp_path: Path) -> None:
    write_torch(tmp_path, CONFIG, TENSORS)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "weights")
    assert_read(tmp_path / "weights", TENSORS)


def test_what_is_converted_from_torch_files(tmp_path: Path) -> None:
    write_torch(tmp_path / "source", CONFIG, TENSORS, 2)
    (tmp_path / "source" / "generation_config.json").write_text('{"temperature": 0.5}')
    mp.convert(tmp_path / "source", tmp_path / "made", "hf")
    assert open_checkpoint(tmp_path / "made").format == "safetensors"
    assert open_checkpoint(tmp_path / "made").generation == {"temperature": 0.5}
    assert [path.name for path in (tmp_path / "made").glob("*model*")] == ["model.safetensors"]
    assert_read(tmp_path / "made", TENSORS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder: (folder / "pytorch_model-00002-of-00002.bin").unlink(), "index.json names are missing"),
        (lambda folder: (folder / TORCH_INDEX).write_text('{"weight_map": {"a": "../a.bin"}}'), "not a shard in this"),
        (lambda folder: (folder / TORCH_INDEX).write_text('{"weight_map": {"a": "a.pkl"}}'), "not a shard in this"),
        (lambda folder: (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x02."), "no zip file, as tor"),
    ],
)
def test_damaged_torch_folders(tmp_path: Path, change: Any, named: str) -> None:
    write_torch(tmp_path, CONFIG, TENSORS, 2)
    change(tmp_path)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("stray", ["model.fp16.safetensors", "other.safetensors", "pytorch_model.bin", "shards"])
def test_the_model_is_taken_and_copies_are_not(tmp_path: Path, stray: str) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    if stray == "shards":
        write_hf(tmp_path, CONFIG, OTHERS, shards=2)
    elif stray == "pytorch_model.bin":
        write_torch(tmp_path, CONFIG, OTHERS)
    else:
        write_safetensors(tmp_path / stray, {name: values.astype(np.float16) for name, values in OTHERS.items()})
    theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path).state_dict()
    assert_read(tmp_path, {name: theirs[name].numpy() for name in TENSORS})


def test_copies_beside_shards_with_an_index(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=2)
    write_safetensors(tmp_path / "model.fp16-00001-of-00001.safetensors", {"model.norm.weight": np.ones(64, "f2")})
    assert_read(tmp_path, TENSORS)


def test_a_copy_alone_or_by_its_path(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    write_safetensors(tmp_path / "model.bf16.safetensors", {name: bfloat16(values) for name, values in OTHERS.items()})
    opened = open_checkpoint(tmp_path / "model.bf16.safetensors")
    assert {tensor.dtype for tensor in opened.tensors.values()} == {"bfloat16"}
    (tmp_path / "model.safetensors").unlink()
    assert {tensor.dtype for tensor in open_checkpoint(tmp_path).tensors.values()} == {"bfloat16"}


@pytest.mark.parametrize("forgotten", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_tensor_that_the_index_forgets_is_read_as_by_transformers(tmp_path: Path, forgotten: str) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["weight_map"][forgotten]
    (tmp_path / INDEX).write_text(json.dumps(index))
    theirs, info = transformers.MistralForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert_read(tmp_path, {name: theirs.state_dict()[name].numpy() for name in TENSORS})


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["tokenizer.model", "tokenizer.model.bak"], "tokenizer.model"),
        (["tokenizer.model", "tokenizer.model.old", "tokenizer.model.v3~", "tokenizer.model.orig"], "tokenizer.model"),
        (["tokenizer.model.v3", "tokenizer.model.v11", "tokenizer.model.v7"], "tokenizer.model.v11"),
        (["tokenizer.model.v7", "tokenizer.model.v7m1"], "tokenizer.model.v7m1"),
        (["tokenizer.model.bak"], None),
    ],
)
def test_copies_of_tokenizer_files_are_not_taken(tmp_path: Path, files: list[str], chosen: str | None) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    for file in files:
        (tmp_path / file).touch()
    assert open_checkpoint(tmp_path).tokenizer == (TokenizerFile(tmp_path / chosen) if chosen else None)
