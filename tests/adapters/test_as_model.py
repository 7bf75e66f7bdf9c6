"""An adapter that is given as a model says what it is; one beside a model is named, and does not disturb it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from adapters.files import linears, random_changes, write_gguf, write_mlx, write_peft, write_raw
from cli.processes import invoke
from weights import files
from weights.files import random_tensors, small_config, write_hf

from mistral_portable.errors import CheckpointError
from mistral_portable.weights import Checkpoint, open_checkpoint

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
CHANGES = random_changes(CONFIG, linears(CONFIG)[1:3], 3, np.random.default_rng(1))
KINDS = ["peft", "gguf", "mlx", "raw"]
FILES = {
    "peft": "adapter_model.safetensors",
    "gguf": "a.gguf",
    "mlx": "adapters.safetensors",
    "raw": "lora.safetensors",
}


def write(folder: Path, kind: str) -> Path:
    """Write an adapter of a kind into a folder; returns the file with its weights."""
    folder.mkdir(exist_ok=True)
    match kind:
        case "peft":
            write_peft(folder, CHANGES)
        case "gguf":
            base = {"general.base_model.0.name": "some/base"}
            write_gguf(folder / FILES["gguf"], CONFIG, CHANGES, 1.0, metadata=base)
        case "mlx":
            write_mlx(folder, CHANGES)
        case _:
            write_raw(folder, CONFIG, CHANGES, 2.0)
    return folder / FILES[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", ["folder", "file"])
@pytest.mark.parametrize("config", [False, True])
def test_an_adapter_given_as_a_model(tmp_path: Path, kind: str, given: str, config: bool) -> None:
    """Some trainers leave the model's config.json beside the adapter."""
    file = write(tmp_path / "adapter", kind)
    if config:
        (file.parent / "config.json").write_text(json.dumps({"model_type": "mistral", **CONFIG.to_dict()}))
    path = file if given == "file" else file.parent
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(path)
    message = str(refused.value)
    assert message.isprintable()
    assert "a LoRA adapter" in message
    assert "--model MODEL --adapter" in message
    assert ("of the model 'some/base'" in message) == (kind != "raw")


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "adapter", "peft")
    result = invoke("run", "Hello", "--model", str(tmp_path / "adapter"))
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"--model MODEL --adapter {tmp_path / 'adapter'}" in result.err


def test_an_adapter_under_another_name(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    write(tmp_path / "adapter", "peft").rename(tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match=r"style\.safetensors: a LoRA adapter"):
        open_checkpoint(tmp_path / "style.safetensors")


def assert_whole(checkpoint: Checkpoint) -> None:
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert np.array_equal(checkpoint.tensors[name].numpy(), values), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["model.safetensors", "other.safetensors", "shards", "raw", "pytorch_model.bin"])
def test_an_adapter_beside_a_model(tmp_path: Path, kind: str, model: str) -> None:
    file = write(tmp_path, kind)
    if model == "raw":
        files.write_raw(tmp_path, CONFIG, TENSORS)
    elif model == "pytorch_model.bin":
        files.write_torch(tmp_path, CONFIG, TENSORS)
    else:
        write_hf(tmp_path, CONFIG, TENSORS, shards=2 if model == "shards" else 1)
        if model == "other.safetensors":
            (tmp_path / "model.safetensors").rename(tmp_path / model)
    checkpoint = open_checkpoint(tmp_path)
    assert_whole(checkpoint)
    (notice,) = (notice for notice in checkpoint.notices if "adapter" in notice)
    assert f"--adapter {file}" in notice


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_beside_a_gguf_model(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, kind)
    files.write_gguf(tmp_path / "model.gguf", CONFIG, TENSORS)
    checkpoint = open_checkpoint(tmp_path)
    assert_whole(checkpoint)
    assert any(f"--adapter {file}" in notice for notice in checkpoint.notices)


def test_snapshots_of_mlx_lms_training(tmp_path: Path) -> None:
    file = write(tmp_path / "adapter", "mlx")
    shutil.copyfile(file, file.with_name("0000100_adapters.safetensors"))
    with pytest.raises(CheckpointError, match="a LoRA adapter"):
        open_checkpoint(tmp_path / "adapter")
