"""GPTQ repositories: values against a loop written from the format's documentation; refused settings and parts."""

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
from mistral_portable.weights.gptq import GPTQTensor

CONFIG = small_config(intermediate_size=128)
HOW = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}


class Packer:
    """Packs random codes, zeros and scales like AutoGPTQ; keeps the weights that they stand for.

    act_order: columns belong to groups in any order. indexed: there is a g_idx.
    """

    def __init__(self, bits: int, group: int, act_order: bool, indexed: bool, lower: int, seed: int = 0) -> None:
        self.bits, self.group, self.act_order, self.indexed, self.lower = bits, group, act_order, indexed, lower
        self.random = np.random.default_rng(seed)
        self.values: dict[str, NDArray[np.float64]] = {}

    def __call__(self, name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        rows, columns = values.shape
        group = columns if self.group == -1 else self.group
        groups = np.arange(columns) // group
        if self.act_order:
            groups = self.random.permutation(groups)
        codes = self.random.integers(0, 2**self.bits, (columns, rows))
        zeros = self.random.integers(self.lower, 2**self.bits, (columns // group, rows))  # the zeros of the formula
        scales = self.random.normal(0, 0.02, zeros.shape).astype(np.float16)
        meant = np.empty((rows, columns))
        for column in range(columns):
            of = groups[column]
            meant[:, column] = (codes[column] - zeros[of]) * scales[of].astype(np.float64)
        self.values[name] = meant
        index = {"g_idx": torch.tensor(groups.astype(np.int32))} if self.indexed else {}
        return index | {
            "qweight": torch.tensor(words(codes.T, self.bits).T.copy()),
            "qzeros": torch.tensor(words(zeros - self.lower, self.bits)),
            "scales": torch.tensor(scales),
        }


def words(codes: NDArray[np.integer[Any]], bits: int) -> NDArray[np.int32]:
    """Pack the codes of each row into 32-bit words, the lowest bits first, through one large integer per row."""
    count = codes.shape[1] * bits // 32
    out = np.empty((codes.shape[0], count), np.uint32)
    for row, own in enumerate(codes):
        number = sum(int(code) << bits * place for place, code in enumerate(own))
        out[row] = [number >> 32 * word & 0xFFFFFFFF for word in range(count)]
    return out.view(np.int32)


@settings(max_examples=12)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.sampled_from([-1, 16, 32]),
    act_order=st.booleans(),
    indexed=st.booleans(),
    form=st.sampled_from(["gptq", "gptq_v2", None]),
    seed=st.integers(0, 99),
)
def test_values_are_those_of_the_formula(
    tmp_path_factory: pytest.TempPathFactory,
    bits: int,
    group: int,
    act_order: bool,
    indexed: bool,
    form: str | None,
    seed: int,
) -> None:
    act_order &= indexed
    folder = tmp_path_factory.mktemp("gptq")
    packer = Packer(bits, group, act_order, indexed, 0 if form == "gptq_v2" else 1, seed)
    how = HOW | {"bits": bits, "group_size": group, "desc_act": act_order}
    write_packed(folder, CONFIG, how | ({"checkpoint_format": form} if form else {}), packer)
    checkpoint = open_checkpoint(folder)
    assert "GPTQ" in checkpoint.notices[0]
    for name, tensor in checkpoint.tensors.items():
        assert isinstance(tensor, GPTQTensor) == packed(name)
        if packed(name):
            assert (tensor.dtype, tensor.shape) == (f"gptq_{bits}bit", packer.values[name].shape)
            np.testing.assert_array_equal(tensor.numpy(np.float64), packer.values[name], err_msg=name)


def test_nbytes_are_those_of_the_file(tmp_path: Path) -> None:
    stored = write_packed(tmp_path, CONFIG, HOW, Packer(4, 32, True, True, 1))
    size = sum(tensor.nbytes for tensor in open_checkpoint(tmp_path).tensors.values())
    assert size == sum(tensor.nbytes for tensor in stored.values())


def test_biases_of_zeros_are_dropped_and_others_refused(tmp_path: Path) -> None:
    stored = write_packed(tmp_path, CONFIG, HOW, Packer(4, 32, False, True, 1))
    name = "model.layers.0.self_attn.q_proj.bias"
    stored[name] = torch.zeros(64, dtype=torch.float16)
    save_file(stored, tmp_path / "model.safetensors")
    assert name not in open_checkpoint(tmp_path).tensors
    logits = mp.load(tmp_path, backend="reference").logits([1, 2, 3])
    assert np.isfinite(logits).all()
    stored[name][3] = 1
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a bias, which this model has not"):
        mp.load(tmp_path, backend="reference")


@pytest.mark.parametrize("act_order", [False, True])
def test_modules_with_bits_and_groups_of_their_own(tmp_path: Path, act_order: bool) -> None:
    """GPTQModel's `dynamic`: rules by module name, whose results follow from the shapes."""
    common, own = Packer(4, 32, act_order, act_order, 1), Packer(8, 16, act_order, act_order, 1)
    third = Packer(3, -1, False, True, 1)

    def pack(name: str, values: NDArray[np.float32]) -> Mapping[str, torch.Tensor]:
        if "down_proj" in name:
            return {"weight": torch.tensor(values)}
        return (own if "v_proj" in name else third if "gate_proj" in name else common)(name, values)

    rules = {"-:.*down_proj": {}, "+:.*v_proj": {"bits": 8, "group_size": 16}, ".*gate": {"bits": 3, "group_size": -1}}
    write_packed(tmp_path, CONFIG, HOW | {"dynamic": rules, "desc_act": act_order}, pack)
    tensors = open_checkpoint(tmp_path).tensors
    for name, expected in (common.values | own.values | third.values).items():
        np.testing.assert_array_equal(tensors[name].numpy(np.float64), expected, err_msg=name)
    assert {tensor.dtype for tensor in tensors.values()} >= {"float32", "gptq_3bit", "gptq_4bit", "gptq_8bit"}


def test_groups_that_may_be_ragged_are_not_guessed(tmp_path: Path) -> None:
    """64 columns in two groups: of 32 and 32, or of 48 and 16, depending on the settings."""
    how = HOW | {"group_size": 48, "dynamic": {"+:.*v_proj": {"group_size": 32}}}
    write_packed(tmp_path, CONFIG, how, Packer(4, 32, False, False, 1))
    with pytest.raises(CheckpointError, match=r"2 groups for 64 columns, of 32 or of 48; it needs a g_idx"):
        open_checkpoint(tmp_path)
    write_packed(tmp_path, CONFIG, how, packer := Packer(4, 32, False, True, 1))
    tensors = open_checkpoint(tmp_path).tensors
    for name, expected in packer.values.items():
        np.testing.assert_array_equal(tensors[name].numpy(np.float64), expected, err_msg=name)


def test_act_order_needs_the_order(tmp_path: Path) -> None:
    write_packed(tmp_path, CONFIG, HOW | {"desc_act": True}, Packer(4, 32, False, False, 1))
    with pytest.raises(CheckpointError, match="has no g_idx"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 5},
        {"bits": "4"},
        {"group_size": 0},
        {"group_size": None},
        {"group_size": True},
        {"checkpoint_format": "marlin"},
        {"is_marlin_format": True},
        {"format": "bitblas"},
    ],
)
def test_settings_that_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_packed(tmp_path, CONFIG, HOW | changes, Packer(4, 32, False, True, 1))
    with pytest.raises(ConfigError, match=r"GPTQ with .*: supported are 2, 3, 4, 8 bits in groups.*GGUF"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("broken", ["qzeros", "scales", "qweight", "narrow", "bits", "far", "below", "short", "floats"])
def test_parts_that_do_not_fit(tmp_path: Path, broken: str) -> None:
    how = HOW | ({"bits": 8} if broken == "bits" else {})
    stored = write_packed(tmp_path, CONFIG, how, Packer(4, 32, False, True, 1))
    module = "model.layers.1.mlp.up_proj"
    match broken:
        case "qzeros" | "scales" | "qweight":
            del stored[f"{module}.{broken}"]
        case "narrow":
            stored[f"{module}.scales"] = stored[f"{module}.scales"][:, :8].contiguous()
        case "far" | "below":
            stored[f"{module}.g_idx"][5] = 2 if broken == "far" else -1
        case "short":
            stored[f"{module}.g_idx"] = stored[f"{module}.g_idx"][:-1].contiguous()
        case "floats":
            stored[f"{module}.g_idx"] = stored[f"{module}.g_idx"].float()
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing|does not fit|not a part of|does not name one of 2 groups"):
        open_checkpoint(tmp_path)
