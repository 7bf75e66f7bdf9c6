"""FP8 checkpoints, HF and raw: values against torch's float8_e4m3fn; refused settings and parts."""

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from weights.files import random_tensors, raw_params, raw_tensors, small_config
from weights.packed_files import packed, write_packed

import mistral_portable as mp
from mistral_portable.errors import CheckpointError, ConfigError, MistralPortableError
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.fp8 import FP8Tensor, fp8_values

CONFIG = small_config()
HOW: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}


def test_the_value_of_every_code() -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(fp8_values(), expected)
    assert (fp8_values()[0x38], fp8_values()[0x7E], fp8_values()[1]) == (1, 448, 2**-9)


class Packer:
    """Packs matrices in float8_e4m3 with scales per matrix, row or block; keeps the weights that they stand for."""

    def __init__(self, scheme: str, block: tuple[int, int], seed: int = 0) -> None:
        self.scheme, self.block = scheme, block
        self.random = np.random.default_rng(seed)
        self.values: dict[str, NDArray[np.float32]] = {}

    def __call__(self, name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        codes = torch.tensor(values * 1000).to(torch.float8_e4m3fn)
        rows, columns = values.shape
        tall, wide = {"tensor": (rows, columns), "rows": (1, columns), "blocks": self.block}[self.scheme]
        shape = (-(-rows // tall), -(-columns // wide))
        scales = self.random.uniform(5e-4, 2e-3, shape).astype(np.float32)
        meant = codes.float().numpy()
        for row in range(rows):
            for column in range(columns):
                meant[row, column] *= scales[row // tall, column // wide]
        self.values[name] = meant
        stored = torch.tensor(scales)
        return {
            "weight": codes,
            "weight_scale_inv": stored.reshape(()) if self.scheme == "tensor" else stored,
            "activation_scale": torch.tensor(1.0),
        }


@settings(max_examples=10)
@given(
    scheme=st.sampled_from(["tensor", "rows", "blocks"]),
    block=st.sampled_from([(16, 16), (128, 128), (24, 40), (1, 7)]),
    seed=st.integers(0, 99),
)
def test_values_are_codes_times_scales(
    tmp_path_factory: pytest.TempPathFactory, scheme: str, block: tuple[int, int], seed: int
) -> None:
    folder, packer = tmp_path_factory.mktemp("fp8"), Packer(scheme, block, seed)
    write_packed(folder, CONFIG, HOW | {"weight_block_size": list(block) if scheme == "blocks" else None}, packer)
    checkpoint = open_checkpoint(folder)
    assert "FP8" in checkpoint.notices[0]
    assert {name for name in checkpoint.tensors if packed(name)} == set(packer.values)
    for name, expected in packer.values.items():
        tensor = checkpoint.tensors[name]
        assert isinstance(tensor, FP8Tensor)
        assert (tensor.dtype, tensor.shape) == ("float8_e4m3", expected.shape)
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)
        order = np.random.default_rng(seed).permutation(tensor.shape[0])
        np.testing.assert_array_equal(tensor.permute_rows(order).numpy(), expected[order])


def test_the_names_of_auto_fp8(tmp_path: Path) -> None:
    """Names in RedHat's and Neural Magic's repositories of quant_method fp8, with scales of cached keys and values."""
    names = {"weight_scale_inv": "weight_scale", "activation_scale": "input_scale"}
    packer = Packer("tensor", (1, 1))

    def pack(name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        return {names.get(part, part): tensor for part, tensor in packer(name, values).items()}

    stored = write_packed(tmp_path, CONFIG, {"quant_method": "fp8", "activation_scheme": "static"}, pack)
    stored |= {f"model.layers.0.self_attn.{kind}_scale": torch.tensor(1.0) for kind in "kv"}
    save_file(stored, tmp_path / "model.safetensors")
    tensors = open_checkpoint(tmp_path).tensors
    assert not any(name.endswith("scale") for name in tensors)
    for name, expected in packer.values.items():
        np.testing.assert_array_equal(tensors[name].numpy(), expected, err_msg=name)


def write_raw_fp8(folder: Path, params: dict[str, Any] | None = None) -> dict[str, NDArray[np.float32]]:
    """A raw folder with `qscale_weight` and `qscale_act`; returns the matrices of its layers, by HF name."""
    tensors = random_tensors(CONFIG, np.random.default_rng(0))
    scaled = {
        name: torch.tensor(v * 1000).to(torch.float8_e4m3fn) if packed(name) else v for name, v in tensors.items()
    }
    meant = {name: v.float().numpy() * np.float32(0.001) for name, v in scaled.items() if isinstance(v, torch.Tensor)}
    stored: dict[str, torch.Tensor] = {}
    for name, values in raw_tensors(CONFIG, tensors | meant).items():
        if values.ndim == 1 or name in ("tok_embeddings.weight", "output.weight"):
            stored[name] = torch.tensor(values)
            continue
        module = name.removesuffix(".weight")
        stored[name] = torch.tensor(values / np.float32(0.001)).to(torch.float8_e4m3fn)
        stored[f"{module}.qscale_weight"] = torch.tensor(0.001)
        stored[f"{module}.qscale_act"] = torch.tensor(1.0)
    quantization = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    (folder / "params.json").write_text(json.dumps(raw_params(CONFIG) | (quantization if params is None else params)))
    save_file(stored, folder / "consolidated.safetensors")
    return meant


def test_raw_weights_are_codes_times_scales(tmp_path: Path) -> None:
    meant = write_raw_fp8(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, len(checkpoint.notices)) == ("raw", 1)
    assert len(checkpoint.tensors) == len(random_tensors(CONFIG, np.random.default_rng(0)))
    for name, expected in meant.items():
        assert checkpoint.tensors[name].dtype == "float8_e4m3"
        np.testing.assert_array_equal(checkpoint.tensors[name].numpy(), expected, err_msg=name)
    assert np.isfinite(mp.load(tmp_path, backend="reference").logits([1, 2, 3])).all()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"quantization": {"qformat_weight": "nvfp4"}},
        {"quantization": {"quant_method": "bitsandbytes"}},
        {"quantization": "fp8"},
    ],
)
def test_what_params_json_does_not_announce_is_refused(tmp_path: Path, params: dict[str, Any]) -> None:
    write_raw_fp8(tmp_path, params)
    with pytest.raises(MistralPortableError, match=r"is float8_e4m3, and no file says|params\.json: weights of quant_"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("block", [128, [128], [0, 128], ["a", "b"], [128, 128, 1], [True, True]])
def test_blocks_that_are_impossible(tmp_path: Path, block: Any) -> None:
    write_packed(tmp_path, CONFIG, HOW | {"weight_block_size": block}, Packer("tensor", (1, 1)))
    with pytest.raises(ConfigError, match="weight_block_size"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("wide", [10**9, 2**62])
def test_blocks_wider_than_the_matrix_take_no_memory(tmp_path: Path, wide: int) -> None:
    packer = Packer("blocks", (16, 64))
    write_packed(tmp_path, CONFIG, HOW | {"weight_block_size": [16, 64]}, packer)
    settings = json.loads((tmp_path / "config.json").read_text())
    stored = load_file(tmp_path / "model.safetensors")
    for name, array in stored.items():  # one block from left to right
        if name.endswith("weight_scale_inv"):
            stored[name] = array[:, :1].contiguous()
    save_file(stored, tmp_path / "model.safetensors")
    found = []
    for columns in (4096, wide):
        settings["quantization_config"]["weight_block_size"] = [16, columns]
        (tmp_path / "config.json").write_text(json.dumps(settings))
        tracemalloc.start()
        tensors = open_checkpoint(tmp_path).tensors
        found.append({name: tensor.numpy() for name, tensor in tensors.items()})
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()
    for name, values in found[0].items():
        np.testing.assert_array_equal(found[1][name], values)


@pytest.mark.parametrize("broken", ["missing", "shape", "floats", "vector", "not announced"])
def test_parts_that_do_not_fit(tmp_path: Path, broken: str) -> None:
    write_packed(tmp_path, CONFIG, HOW, Packer("tensor", (1, 1)))
    stored = load_file(tmp_path / "model.safetensors")
    module = "model.layers.1.mlp.up_proj"
    match broken:
        case "missing":
            del stored[f"{module}.weight_scale_inv"]
        case "shape":
            stored[f"{module}.weight_scale_inv"] = torch.ones(3, 2)
        case "floats":
            stored[f"{module}.weight"] = stored[f"{module}.weight"].float()
        case "vector":
            stored[f"{module}.weight"] = stored[f"{module}.weight"][0].contiguous()
        case "not announced":
            config = json.loads((tmp_path / "config.json").read_text())
            del config["quantization_config"]
            (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(stored, tmp_path / "model.safetensors")
    messages = r"has no scale|not blocks of|but no float8|must be a matrix|and no file says how it is packed"
    with pytest.raises(CheckpointError, match=messages):
        open_checkpoint(tmp_path)
