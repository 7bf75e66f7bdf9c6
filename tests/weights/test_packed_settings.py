"""Where the settings of packed weights may be written: keys and files of other versions give the same weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from weights import test_awq, test_compressed_tensors, test_gptq
from weights.files import random_tensors, raw_params, raw_tensors, small_config, write_hf
from weights.packed_files import write_packed

import mistral_portable as mp
from mistral_portable import transformers as ours
from mistral_portable.errors import CheckpointError, ConfigError, MistralPortableError
from mistral_portable.weights import open_checkpoint

CONFIG = small_config(intermediate_size=128)


def move_settings(folder: Path, settings: Any, to: str) -> None:
    """Write the settings under another key of `config.json`, or into a file beside it, in place of the usual key."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    if to.endswith(".json"):
        (folder / to).write_text(json.dumps(settings))
    else:
        config[to] = settings
    (folder / "config.json").write_text(json.dumps(config))


def assert_values(folder: Path, expected: dict[str, NDArray[Any]]) -> None:
    tensors = open_checkpoint(folder).tensors
    for name, values in expected.items():
        np.testing.assert_array_equal(tensors[name].numpy(np.float64), values, err_msg=name)


@pytest.mark.parametrize("named", [{}, {"quant_method": "gptq"}])
def test_gptq_beside_the_config(tmp_path: Path, named: dict[str, str]) -> None:
    packer = test_gptq.Packer(4, 32, True, True, 1)
    write_packed(tmp_path, CONFIG, test_gptq.HOW, packer)
    how = {"bits": 4, "group_size": 32, "damp_percent": 0.1, "desc_act": True, "model_file_base_name": "model"}
    move_settings(tmp_path, named | how, "quantize_config.json")
    assert_values(tmp_path, packer.values)


@pytest.mark.parametrize("to", ["quant_config.json", "quantize_config.json", "quantization_config"])
def test_awqs_own_names(tmp_path: Path, to: str) -> None:
    packer = test_awq.Packer(32)
    write_packed(tmp_path, CONFIG, test_awq.HOW, packer)
    how: dict[str, Any] = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    move_settings(tmp_path, how | ({} if to.endswith("json") else {"quant_method": "AWQ"}), to)
    assert_values(tmp_path, packer.values)


@pytest.mark.parametrize("method", ["compressed-tensors", "compressed_tensors"])
def test_compressed_tensors_by_its_older_key(tmp_path: Path, method: str) -> None:
    packer = test_compressed_tensors.Packer(**test_compressed_tensors.SCHEMES["w4a16"])
    write_packed(tmp_path, test_compressed_tensors.CONFIG, test_compressed_tensors.HOW, packer)
    move_settings(tmp_path, test_compressed_tensors.HOW | {"quant_method": method}, "compression_config")
    tensors = open_checkpoint(tmp_path).tensors
    for name, values in packer.values.items():
        np.testing.assert_array_equal(tensors[name].numpy(), values, err_msg=name)


def test_mistrals_own_files_with_compressed_tensors(tmp_path: Path) -> None:
    """Rows of q and k are interleaved before they are packed: they must come back in Hugging Face's order."""
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    stored: dict[str, torch.Tensor] = {}
    expected = {}
    for name, values in tensors.items():
        if "_proj" in name:  # one scale for the matrix, so that the order of rows does not matter to it
            codes = np.clip(np.round(values / 0.002), -127, 127).astype(np.int8)
            expected[name] = codes * np.float32(0.002)
            tensors[name] = codes
    for name, values in raw_tensors(config, tensors).items():
        stored[name] = torch.tensor(values)
        if values.dtype == np.int8:
            stored[f"{name}_scale"] = torch.tensor([[0.002]])
    how = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    (tmp_path / "params.json").write_text(json.dumps(raw_params(config) | {"quantization": how}))
    save_file(stored, tmp_path / "consolidated.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert "COMPRESSED-TENSORS" in checkpoint.notices[0]
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.tensors[name].numpy(), values, err_msg=name)
    assert np.isfinite(mp.load(tmp_path, backend="reference").logits([1, 2, 3])).all()


def test_settings_in_the_config_come_first(tmp_path: Path) -> None:
    packer = test_gptq.Packer(4, 32, False, True, 1)
    write_packed(tmp_path, CONFIG, test_gptq.HOW, packer)
    (tmp_path / "quantize_config.json").write_text('{"bits": 8, "group_size": 128}')
    assert_values(tmp_path, packer.values)


@pytest.mark.parametrize("content", ['{"bits": 4, "group_size": 32}', "{}", '{"quant_method": "other"}', "no JSON"])
def test_settings_left_beside_floats_change_nothing(tmp_path: Path, content: str) -> None:
    write_hf(tmp_path, CONFIG, random_tensors(CONFIG, np.random.default_rng(0)))
    (tmp_path / "quantize_config.json").write_text(content)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.notices == ()
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"float32"}


def test_packed_weights_without_settings_are_one_line(tmp_path: Path) -> None:
    write_packed(tmp_path, CONFIG, test_gptq.HOW, test_gptq.Packer(4, 32, False, True, 1))
    move_settings(tmp_path, {}, "note")
    with pytest.raises(CheckpointError, match=r"is int32, and no file says how it is packed"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[]", "is not a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": "' + "x" * 2**21 + '"}', "not valid JSON of at most 1048576 bytes"),
        ('{"quant_method": "exl2"}', "quant_method='exl2' are not supported"),
        ('{"bits": 3.5, "group_size": 32}', "GPTQ with bits=3.5"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, content: str, named: str) -> None:
    write_packed(tmp_path, CONFIG, test_gptq.HOW, test_gptq.Packer(4, 32, False, True, 1))
    move_settings(tmp_path, {}, "note")
    (tmp_path / "quantize_config.json").write_text(content)
    with pytest.raises(ConfigError, match=named) as refused:
        open_checkpoint(tmp_path)
    assert isinstance(refused.value, MistralPortableError)
    assert len(str(refused.value)) < 600


def test_floats_saved_from_packed_weights_do_not_say_that_they_are_packed(tmp_path: Path) -> None:
    write_packed(tmp_path / "packed", CONFIG, test_gptq.HOW, test_gptq.Packer(4, 32, False, True, 1))
    mine = ours.MistralForCausalLM.from_pretrained(tmp_path / "packed", backend="reference")
    mine.save_pretrained(tmp_path / "floats")
    theirs = transformers.MistralForCausalLM.from_pretrained(tmp_path / "floats")
    with torch.no_grad():
        wanted = theirs(torch.tensor([[1, 2, 3]])).logits.numpy()
    np.testing.assert_allclose(mine([[1, 2, 3]]).logits, wanted, rtol=1e-4, atol=1e-4)
    assert load_file(tmp_path / "floats" / "model.safetensors").keys() == mine.tensors.keys()
