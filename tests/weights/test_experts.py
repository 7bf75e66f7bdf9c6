"""Experts in one tensor or in many give the same matrices in all formats; inferred windows."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from numpy.typing import NDArray
from safetensors.numpy import save_file
from weights.files import raw_params

import mistral_portable as mp
from mistral_portable.boundary.binding import check_tensors
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError
from mistral_portable.graph import build
from mistral_portable.testing import random_weights
from mistral_portable.testing.families import FAMILIES, shrunk
from mistral_portable.weights import DenseTensor, open_checkpoint
from mistral_portable.weights.names import half_split_order, to_gguf, to_raw
from mistral_portable.weights.windows import inferred_windows

CONFIG = shrunk(FAMILIES["Mixtral 8x7B"])
FLOATS = {name: tensor.numpy() for name, tensor in random_weights(build(CONFIG), seed=0).items()}
MATRICES = {"w1": "gate", "w3": "up", "w2": "down"}
Floats = NDArray[np.float32]


def stacked(layer: int, matrix: str) -> Floats:
    name = f"model.layers.{layer}.block_sparse_moe.experts"
    return np.stack([FLOATS[f"{name}.{expert}.{matrix}.weight"] for expert in range(CONFIG.num_local_experts)])


def plain() -> dict[str, Floats]:
    return {name: array for name, array in FLOATS.items() if ".experts." not in name}


def hub() -> dict[str, Floats]:
    return dict(FLOATS)


def mlx() -> dict[str, Floats]:
    made = plain()
    for layer in range(CONFIG.num_hidden_layers):
        for matrix, name in MATRICES.items():
            made[f"model.layers.{layer}.block_sparse_moe.switch_mlp.{name}_proj.weight"] = stacked(layer, matrix)
    return made


def transformers_5() -> dict[str, Floats]:
    made = {name.replace("block_sparse_moe", "mlp"): array for name, array in plain().items()}
    for layer in range(CONFIG.num_hidden_layers):
        both = np.concatenate([stacked(layer, "w1"), stacked(layer, "w3")], axis=1)
        made[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = both
        made[f"model.layers.{layer}.mlp.experts.down_proj"] = stacked(layer, "w2")
    return made


def seeing() -> dict[str, Floats]:
    return {f"language_model.{name}": array for name, array in FLOATS.items()} | {"vision_tower.x": np.ones(1, "f4")}


def write_hf(folder: Path, tensors: dict[str, Floats]) -> None:
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG.to_dict(), "model_type": "mixtral"}))


@pytest.mark.parametrize("layout", [hub, mlx, transformers_5, seeing])
def test_safetensors(tmp_path: Path, layout: Callable[[], dict[str, Floats]]) -> None:
    write_hf(tmp_path, layout())
    opened = open_checkpoint(tmp_path)
    check_tensors(build(CONFIG), opened.tensors, "m")
    for name, expected in FLOATS.items():
        np.testing.assert_array_equal(opened.tensors[name].numpy(), expected, err_msg=name)


@pytest.mark.parametrize("layout", [mlx, transformers_5])
def test_another_number_of_experts_is_refused(tmp_path: Path, layout: Callable[[], dict[str, Floats]]) -> None:
    tensors = {name: array[:3] if array.ndim == 3 else array for name, array in layout().items()}
    write_hf(tmp_path, tensors)
    with pytest.raises(CheckpointError, match="not that of 8 experts"):
        open_checkpoint(tmp_path)


def write_gguf(path: Path, kind: str, together: bool, experts: int = 8) -> None:
    """Tensors like those of llama.cpp's conversion, now or before it stacked experts."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(CONFIG.num_hidden_layers)
    writer.add_context_length(CONFIG.max_position_embeddings)
    writer.add_embedding_length(CONFIG.hidden_size)
    writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.num_attention_heads)
    writer.add_head_count_kv(CONFIG.num_key_value_heads)
    writer.add_key_length(CONFIG.head_dim)
    writer.add_layer_norm_rms_eps(CONFIG.rms_norm_eps)
    writer.add_rope_freq_base(CONFIG.rope_theta)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    type = GGMLQuantizationType[kind]

    def add(name: str, array: Floats) -> None:
        writer.add_tensor(name, quants.quantize(array, type), raw_dtype=type)

    for name, array in plain().items():
        heads = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}.get(name.split(".")[-2])
        ordered = array[np.argsort(half_split_order(heads, CONFIG.head_dim))] if heads else array
        writer.add_tensor(to_gguf(name), ordered)
    for layer in range(CONFIG.num_hidden_layers):
        for matrix, name in MATRICES.items():
            each = stacked(layer, matrix)
            if together:
                add(f"blk.{layer}.ffn_{name}_exps.weight", each)
            for expert, array in enumerate(() if together else each):
                add(f"blk.{layer}.ffn_{name}.{expert}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_gguf(tmp_path: Path, kind: str, together: bool) -> None:
    write_gguf(tmp_path / "m.gguf", kind, together)
    opened = open_checkpoint(tmp_path / "m.gguf")
    check_tensors(build(opened.config), opened.tensors, "m")
    type = GGMLQuantizationType[kind]
    for name, array in FLOATS.items():
        packed = ".experts." in name and kind != "F32"
        expected = quants.dequantize(quants.quantize(array, type), type) if packed else array
        np.testing.assert_array_equal(opened.tensors[name].numpy(), expected, err_msg=name)


def test_gguf_with_another_number_of_experts_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "F32", together=True, experts=4)
    with pytest.raises(CheckpointError, match="does not hold 4 experts"):
        open_checkpoint(tmp_path / "m.gguf")


def test_raw(tmp_path: Path) -> None:
    names = {name: to_raw(name) for name in FLOATS}
    assert names["model.layers.1.block_sparse_moe.experts.7.w2.weight"] == "layers.1.feed_forward.experts.7.w2.weight"
    assert names["model.layers.0.block_sparse_moe.gate.weight"] == "layers.0.feed_forward.gate.weight"


def first_raw() -> dict[str, Floats]:
    """The tensors of Mixtral's first files, as transformers' and mlx-examples' converters read them: experts stacked
    along the rows, and those of w2 transposed."""
    made = {}
    for name, array in plain().items():
        heads = {"q_proj": CONFIG.num_attention_heads, "k_proj": CONFIG.num_key_value_heads}.get(name.split(".")[-2])
        ordered = array[np.argsort(half_split_order(heads, CONFIG.head_dim))] if heads else array
        made[to_raw(name).replace("feed_forward.gate", "block_sparse_moe.gate")] = ordered
    for layer in range(CONFIG.num_hidden_layers):
        for matrix in MATRICES:
            each = stacked(layer, matrix)
            made[f"layers.{layer}.block_sparse_moe.{matrix}"] = np.concatenate(
                [one.T if matrix == "w2" else one for one in each]
            )
    return made


def write_first_raw(folder: Path, tensors: dict[str, Floats], files: int) -> None:
    """Write whole tensors, distributed over several torch files or in one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    moe = {"num_experts": CONFIG.num_local_experts, "num_experts_per_tok": CONFIG.num_experts_per_tok}
    (folder / "params.json").write_text(json.dumps(raw_params(CONFIG) | {"moe": moe}))
    if not files:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "consolidated.safetensors"
        )
    for file in range(files):
        some = list(tensors.items())[file::files]
        torch.save(
            {name: torch.from_numpy(array.copy()) for name, array in some}, folder / f"consolidated.{file:02}.pt"
        )


@pytest.mark.parametrize("files", [0, 1, 3])
def test_the_first_raw_files(tmp_path: Path, files: int) -> None:
    write_first_raw(tmp_path, first_raw(), files)
    opened = open_checkpoint(tmp_path)
    check_tensors(build(CONFIG), opened.tensors, "m")
    for name, expected in FLOATS.items():
        tensor = opened.tensors[name]
        np.testing.assert_array_equal(tensor.numpy(), expected, err_msg=name)
        if ".w2." in name:
            assert isinstance(tensor, DenseTensor)
            assert not tensor.array.flags.owndata  # a view of the file
            assert tensor.raw().flags.c_contiguous
            np.testing.assert_array_equal(tensor.rows(slice(3, 9)).numpy(), expected[3:9])


def test_the_first_raw_files_convert_there_and_back(tmp_path: Path) -> None:
    write_first_raw(tmp_path / "first", first_raw(), 3)
    for source, target, kind in (("first", "hf", "hf"), ("hf", "raw", "raw"), ("first", "m.gguf", "gguf")):
        mp.convert(tmp_path / source, tmp_path / target, kind)
        for name, tensor in open_checkpoint(tmp_path / target).tensors.items():
            np.testing.assert_array_equal(tensor.numpy(), FLOATS[name], err_msg=f"{target} {name}")
    tokens = list(range(20))
    logits = [
        mp.load(tmp_path / source, backend=backend, dtype="float32").logits(tokens)
        for source, backend in (("first", "reference"), ("first", "numba"), ("raw", "reference"))
    ]
    np.testing.assert_array_equal(logits[0], logits[2])
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("broken", ["rows", "axes", "empty", "count", "pieces"])
def test_first_raw_files_that_do_not_fit(tmp_path: Path, broken: str) -> None:
    tensors, name = first_raw(), "layers.0.block_sparse_moe.w2"
    match broken:
        case "rows":
            tensors[name] = tensors[name][1:]
        case "axes":
            tensors[name] = tensors[name].reshape(-1)
        case "empty":
            tensors[name] = tensors[name][:, :0]
    write_first_raw(tmp_path, tensors, 2)
    match broken:
        case "count":
            (tmp_path / "params.json").write_text(json.dumps(raw_params(CONFIG)))
        case "pieces":  # w2 in both files, all else in one of them
            path = tmp_path / "consolidated.01.pt"
            torch.save(torch.load(path) | {name: torch.zeros(8, 8)}, path)
            torch.save({name: torch.zeros(8, 8)}, tmp_path / "consolidated.00.pt")
    with pytest.raises(CheckpointError, match=r"not that of [08] experts|each needs a piece|do not fit the config"):
        check_tensors(build(CONFIG), open_checkpoint(tmp_path).tensors, "m")


def test_what_is_missing_of_all_experts_is_said_once(tmp_path: Path) -> None:
    write_hf(tmp_path, {name: array for name, array in hub().items() if not name.endswith(".w3.weight")})
    opened = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        check_tensors(build(CONFIG), opened.tensors, "m")
    missing = "model.layers.{0-1}.block_sparse_moe.experts.{0-7}.w3.weight is missing"
    assert str(caught.value) == f"m: the tensors do not fit the config: {missing}"


MINISTRAL_8B = FAMILIES["Ministral 8B"]


@pytest.mark.parametrize(("stated", "window"), [(True, 32768), (False, None)])
def test_the_windows_of_ministral_8b_are_inferred_with_a_notice(stated: bool, window: Any) -> None:
    config, notices = inferred_windows(MINISTRAL_8B.with_window(window), stated=stated)
    assert config == MINISTRAL_8B
    assert len(notices) == 1
    assert "--window" in notices[0]


@pytest.mark.parametrize(
    "config",
    [
        MINISTRAL_8B,
        MINISTRAL_8B.with_window(4096),
        MINISTRAL_8B.with_window(None),
        replace(MINISTRAL_8B.with_window(32768), num_hidden_layers=32),
        FAMILIES["Small 24B"],
    ],
)
def test_what_others_state_is_taken(config: MistralConfig) -> None:
    assert inferred_windows(config, stated=True) == (config, ())
