"""AWQ repositories: values against a loop written from the format's documentation; refused settings and parts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from weights.files import small_config
from weights.packed_files import packed, write_packed

import mistral_portable as mp
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.awq import AWQTensor

CONFIG = small_config()
HOW = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


class Packer:
    """Packs random codes, zeros and scales like AutoAWQ's `WQLinear_GEMM`; keeps the weights that they stand for."""

    def __init__(self, group: int, seed: int = 0) -> None:
        self.group = group
        self.random = np.random.default_rng(seed)
        self.values: dict[str, NDArray[np.float64]] = {}

    def __call__(self, name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        rows, columns = values.shape
        group = columns if self.group == -1 else self.group
        codes = self.random.integers(0, 16, (columns, rows))
        zeros = self.random.integers(0, 16, (columns // group, rows))
        scales = self.random.normal(0, 0.02, zeros.shape).astype(np.float16)
        meant = np.empty((rows, columns))
        for row in range(rows):
            for column in range(columns):
                of = column // group
                meant[row, column] = (int(codes[column, row]) - int(zeros[of, row])) * float(scales[of, row])
        self.values[name] = meant
        return {"qweight": pack(codes), "qzeros": pack(zeros), "scales": torch.tensor(scales)}


class RowsPacker(Packer):
    """Packs like AutoAWQ's `WQLinear_GEMV`: not transposed, in order, with more zeros and scales than groups."""

    def __call__(self, name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        rows, columns = values.shape
        group = columns if self.group == -1 else self.group
        count = columns // group
        width = 4 * -(-count // 32)
        codes = self.random.integers(0, 16, (rows, columns))
        zeros = self.random.integers(0, 16, (rows, 8 * width))
        scales = self.random.normal(0, 0.02, zeros.shape).astype(np.float16)
        meant = np.empty((rows, columns))
        for column in range(columns):
            of = column // group
            meant[:, column] = (codes[:, column] - zeros[:, of]) * scales[:, of].astype(np.float64)
        self.values[name] = meant
        plain = list(range(8))
        return {"qweight": pack(codes, plain), "qzeros": pack(zeros, plain), "scales": torch.tensor(scales)}


def pack(codes: NDArray[np.integer[Any]], order: list[int] = ORDER) -> torch.Tensor:
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for word in range(words.shape[1]):
        for nibble in range(8):
            words[:, word] |= codes[:, word * 8 + order[nibble]].astype(np.uint32) << np.uint32(4 * nibble)
    return torch.tensor(words.view(np.int32))


@settings(max_examples=5)
@given(group=st.sampled_from([-1, 16, 32]), seed=st.integers(0, 99))
@pytest.mark.parametrize("version", ["gemm", "GEMV"])
def test_values_are_those_of_the_formula(
    tmp_path_factory: pytest.TempPathFactory, version: str, group: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("awq")
    packer = (Packer if version == "gemm" else RowsPacker)(group, seed)
    write_packed(folder, CONFIG, HOW | {"group_size": group, "version": version}, packer)
    checkpoint = open_checkpoint(folder)
    assert "AWQ" in checkpoint.notices[0]
    assert "unpacked" in checkpoint.notices[0]
    for name, tensor in checkpoint.tensors.items():
        assert isinstance(tensor, AWQTensor) == packed(name)
        if packed(name):
            assert tensor.dtype == "awq_4bit"
            assert tensor.shape == packer.values[name].shape
            np.testing.assert_array_equal(tensor.numpy(np.float64), packer.values[name], err_msg=name)
            order = np.random.default_rng(seed).permutation(tensor.shape[0])
            np.testing.assert_array_equal(
                tensor.permute_rows(order).permute_rows(order).numpy(), tensor.numpy()[order][order]
            )


def test_nbytes_are_those_of_the_file(tmp_path: Path) -> None:
    stored = write_packed(tmp_path, CONFIG, HOW, Packer(32))
    size = sum(tensor.nbytes for tensor in open_checkpoint(tmp_path).tensors.values())
    assert size == sum(tensor.nbytes for tensor in stored.values())


def test_they_run(tmp_path: Path) -> None:
    write_packed(tmp_path, CONFIG, HOW, Packer(32))
    tokens = list(range(20))
    logits = [mp.load(tmp_path, backend=name, dtype="float32").logits(tokens) for name in ("reference", "numba")]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 8},
        {"bits": None},
        {"group_size": 0},
        {"group_size": "32"},
        {"version": "gemv_fast"},
        {"version": "marlin"},
        {"group_size": -2},
        {"group_size": True},
    ],
)
def test_settings_that_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_packed(tmp_path, CONFIG, HOW | changes, Packer(32))
    with pytest.raises(ConfigError, match=r"AWQ with .*: supported are 4 bits in groups.*GGUF"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("stated", ["gemm", "gemv"])
def test_a_layout_under_the_other_name_is_refused(tmp_path: Path, stated: str) -> None:
    packer = (RowsPacker if stated == "gemm" else Packer)(32)
    write_packed(tmp_path, CONFIG, HOW | {"version": stated}, packer)
    with pytest.raises(CheckpointError, match=f"does not fit .* version '{stated}'"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("broken", ["qzeros", "scales", "qweight", "narrow", "dtype", "codes", "group", "empty"])
def test_parts_that_do_not_fit(tmp_path: Path, broken: str) -> None:
    how = HOW | ({"group_size": 24} if broken == "group" else {})
    stored = write_packed(tmp_path, CONFIG, how, Packer(32))
    module = "model.layers.1.mlp.up_proj"
    match broken:
        case "qzeros" | "scales" | "qweight":
            del stored[f"{module}.{broken}"]
        case "narrow":
            stored[f"{module}.scales"] = stored[f"{module}.scales"][:, :8].contiguous()
        case "dtype":
            stored[f"{module}.qweight"] = stored[f"{module}.qweight"].float()
        case "codes":  # scales that are no floats
            stored[f"{module}.scales"] = stored[f"{module}.scales"].float().to(torch.float8_e4m3fn)
        case "empty":
            stored[f"{module}.qweight"] = torch.zeros(0, 12, dtype=torch.int32)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing|does not fit|not a part of|has parts of"):
        open_checkpoint(tmp_path)
