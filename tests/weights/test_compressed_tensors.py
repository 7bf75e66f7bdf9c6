"""compressed-tensors repositories: packed and unpacked by the library of that name; refused settings and parts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from weights.files import small_config
from weights.packed_files import packed, write_packed

import mistral_portable as mp
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights import open_checkpoint

CONFIG = small_config()


class Packer:
    """Compresses random weights, scales and zero points with the library; keeps its decompressed weights."""

    def __init__(self, form: str, seed: int = 0, **weights: Any) -> None:
        self.form = form
        self.scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
        self.compressor = BaseCompressor.get_value_from_registry(form)
        self.random = np.random.default_rng(seed)
        self.values: dict[str, NDArray[np.float32]] = {}

    @property
    def how(self) -> dict[str, Any]:
        """`quantization_config` written by the library."""
        config = QuantizationConfig(config_groups={"group_0": self.scheme}, format=self.form, ignore=["lm_head"])
        made: dict[str, Any] = json.loads(config.model_dump_json())
        return made | {"quantization_status": "compressed", "sparsity_config": {}, "transform_config": {}}

    def __call__(self, name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        rows, columns = values.shape
        args = self.scheme.weights
        shape = {
            "tensor": (1,),
            "channel": (rows, 1),
            "group": (rows, columns // (args.group_size or columns)),
            "block": tuple(
                -(-size // block) for size, block in zip(values.shape, args.block_structure or (1, 1), strict=True)
            ),
        }[args.strategy]
        most = 448 if args.type == "float" else 2 ** (args.num_bits - 1)
        state = {
            "weight": torch.tensor(values),
            "weight_scale": torch.tensor(self.random.uniform(0.5, 1.5, shape).astype(np.float32) * 0.1 / most),
        }
        if not args.symmetric:
            zeros = self.random.integers(-most, most, shape)
            state["weight_zero_point"] = torch.tensor(zeros.astype(np.int8))
        stored = self.compressor.compress(state, self.scheme)
        self.values[name] = self.compressor.decompress(stored, self.scheme)["weight"].float().numpy()
        return {**stored, "input_scale": torch.tensor(1.0)}


SCHEMES: dict[str, dict[str, Any]] = {
    "w4a16": {"form": "pack-quantized", "num_bits": 4, "strategy": "group", "group_size": 32},
    "w4a16 asym": {"form": "pack-quantized", "num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False},
    "w4a16 channel": {"form": "pack-quantized", "num_bits": 4, "strategy": "channel", "symmetric": False},
    "w2a16": {"form": "pack-quantized", "num_bits": 2, "strategy": "group", "group_size": 32},
    "w8a16": {"form": "pack-quantized", "num_bits": 8, "strategy": "channel"},
    "w8a8": {"form": "int-quantized", "num_bits": 8, "strategy": "channel"},
    "w8a8 asym": {"form": "int-quantized", "num_bits": 8, "strategy": "tensor", "symmetric": False},
    "fp8": {"form": "float-quantized", "num_bits": 8, "type": "float", "strategy": "tensor"},
    "fp8 dynamic": {"form": "float-quantized", "num_bits": 8, "type": "float", "strategy": "channel"},
    "fp8 block": {
        "form": "float-quantized",
        "num_bits": 8,
        "type": "float",
        "strategy": "block",
        "block_structure": [24, 40],
    },
}


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=3)
@given(seed=st.integers(0, 99))
def test_values_are_the_librarys(tmp_path_factory: pytest.TempPathFactory, scheme: str, seed: int) -> None:
    folder, packer = tmp_path_factory.mktemp("compressed"), Packer(seed=seed, **SCHEMES[scheme])
    write_packed(folder, CONFIG, packer.how, packer)
    checkpoint = open_checkpoint(folder)
    assert "COMPRESSED-TENSORS weights are unpacked" in checkpoint.notices[0]
    assert {name for name in checkpoint.tensors if packed(name)} == set(packer.values)
    for name, expected in packer.values.items():
        tensor = checkpoint.tensors[name]
        assert tensor.dtype == ("float8_e4m3" if "fp8" in scheme else f"compressed_{SCHEMES[scheme]['num_bits']}bit")
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)
        order = np.random.default_rng(seed).permutation(tensor.shape[0])
        np.testing.assert_array_equal(tensor.permute_rows(order).numpy(), expected[order])


def test_a_matrix_by_hand(tmp_path: Path) -> None:
    """4 bits: codes 0 .. 15 minus 8, the lowest bits first, times the scale of the group in weight_g_idx."""

    def pack(name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        rows, columns = values.shape
        words = np.full((rows, columns // 8), 0x76543210, np.int32)
        index = np.arange(columns, dtype=np.int32) % 2
        return {
            "weight_packed": torch.tensor(words),
            "weight_scale": torch.tensor([[1.0, 10.0]] * rows),
            "weight_shape": torch.tensor([rows, columns]),
            "weight_g_idx": torch.tensor(index),
        }

    write_packed(tmp_path, CONFIG, HOW, pack)
    row = open_checkpoint(tmp_path).tensors["model.layers.0.mlp.up_proj.weight"].numpy()[3]
    assert row[:9].tolist() == [-8, -70, -6, -50, -4, -30, -2, -10, -8]


HOW: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}


@pytest.mark.parametrize("scheme", ["w4a16", "fp8 dynamic"])
def test_transformers_gives_the_same_logits(tmp_path: Path, scheme: str) -> None:
    from transformers import AutoModelForCausalLM

    packer = Packer(**SCHEMES[scheme])
    write_packed(tmp_path, CONFIG, packer.how, packer)
    tokens = list(range(20))
    peer = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = peer(torch.tensor([tokens])).logits[0].numpy()
    found = mp.load(tmp_path, backend="reference").logits(tokens)
    # Two float32 models of the same weights; a wrong scale of one group has a far larger error.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_modules_of_several_kinds(tmp_path: Path) -> None:
    kinds = {"q_proj": "w8a16", "gate_proj": "fp8 dynamic", "down_proj": "w8a8", "": "w4a16"}
    packers = {part: Packer(**SCHEMES[scheme]) for part, scheme in kinds.items()}

    def pack(name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        return next(packer for part, packer in packers.items() if part in name)(name, values)

    groups = {
        part: packer.how["config_groups"]["group_0"] | {"format": packer.form} for part, packer in packers.items()
    }
    write_packed(tmp_path, CONFIG, HOW | {"format": "mixed-precision", "config_groups": groups}, pack)
    tensors = open_checkpoint(tmp_path).tensors
    for packer in packers.values():
        for name, expected in packer.values.items():
            np.testing.assert_array_equal(tensors[name].numpy(), expected, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "nvfp4-pack-quantized"},
        {"format": "marlin-24"},
        {"format": ["pack-quantized"]},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        {"transform_config": {"config_groups": {"R1": {}}}},
        {"config_groups": {"group_0": {"format": "mxfp4-pack-quantized", "targets": []}}, "format": "mixed-precision"},
    ],
)
def test_settings_that_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_packed(tmp_path, CONFIG, HOW | changes, Packer(**SCHEMES["w4a16"]))
    with pytest.raises(ConfigError, match=r"compressed-tensors with .*: supported are .*GGUF"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("method", ["bitsandbytes", "auto-round", "modelopt", None])
def test_other_methods_are_named(tmp_path: Path, method: str | None) -> None:
    write_packed(tmp_path, CONFIG, HOW | {"quant_method": method}, Packer(**SCHEMES["w4a16"]))
    with pytest.raises(ConfigError, match=f"quant_method={method!r} are not supported.*original checkpoint or a GGUF"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "broken",
    [
        "scale",
        "codes",
        "shape",
        "columns",
        "three bits",
        "narrow",
        "zeros",
        "dtype",
        "far",
        "vector",
        "left over",
        "twice",
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, broken: str) -> None:
    stored = write_packed(tmp_path, CONFIG, HOW, Packer(**SCHEMES["w4a16 asym"]))
    module = "model.layers.1.mlp.up_proj"
    match broken:
        case "scale" | "shape":
            del stored[f"{module}.weight_{broken}"]
        case "codes":
            del stored[f"{module}.weight_packed"]
        case "columns":
            stored[f"{module}.weight_shape"][1] = 2**40
        case "three bits":
            stored[f"{module}.weight_packed"] = stored[f"{module}.weight_packed"][:, :6].contiguous()
        case "narrow":
            stored[f"{module}.weight_scale"] = stored[f"{module}.weight_scale"][:5].contiguous()
        case "zeros":
            stored[f"{module}.weight_zero_point"] = stored[f"{module}.weight_zero_point"][:, :1].contiguous()
        case "dtype":
            stored[f"{module}.weight_packed"] = stored[f"{module}.weight_packed"].float()
        case "far":
            stored[f"{module}.weight_g_idx"] = torch.full((64,), 4, dtype=torch.int32)
        case "vector":
            stored[f"{module}.weight_scale"] = stored[f"{module}.weight_scale"][:, 0].contiguous()
        case "twice":
            stored[f"{module}.weight"] = torch.ones(4, 4)
        case "left over":
            stored["model.norm.weight"] = torch.ones(64, dtype=torch.int64)
    save_file(stored, tmp_path / "model.safetensors")
    messages = (
        r"is missing|does not fit|has parts of|needs a weight_shape|but no float8|does not name|is not a part|too many"
    )
    with pytest.raises(CheckpointError, match=messages):
        open_checkpoint(tmp_path)
