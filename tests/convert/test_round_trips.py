"""Conversions keep every bit of floats and of packed weights that the target can hold, and the config with them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from weights import test_awq, test_compressed_tensors, test_fp8, test_gptq
from weights.files import random_tensors, small_config, write_gguf, write_hf, write_raw
from weights.packed_files import write_packed

import mistral_portable as mp
from mistral_portable.config import MistralConfig
from mistral_portable.conversion import FORMATS
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights import AffineTensor, BlockTensor, DenseTensor, open_checkpoint
from mistral_portable.weights.blocks import QUANTIZED

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TYPES = ["float32", "float16", "bfloat16"]
# Fields that change answers; not every format stores the others (dropout, dtype, ids of an absent tokenizer).
ANSWERS = [
    *["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"],
    *["num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "layer_windows"],
    "max_position_embeddings",
]


def bits(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and stored bits of every tensor, in the canonical layout."""
    found = {}
    for name, tensor in open_checkpoint(path).tensors.items():
        assert isinstance(tensor, DenseTensor)
        found[name] = tensor.dtype, tensor.raw().tobytes()
    return found


def answers(path: Path) -> dict[str, Any]:
    config = open_checkpoint(path).config
    return {name: getattr(config, name) for name in ANSWERS}


def configs() -> st.SearchStrategy[MistralConfig]:
    return st.builds(
        small_config,
        num_hidden_layers=st.integers(1, 2),
        num_attention_heads=st.just(4),
        num_key_value_heads=st.sampled_from([1, 2, 4]),
        head_dim=st.sampled_from([2, 10, 16, 24]),
        vocab_size=st.integers(3, 70),
        sliding_window=st.sampled_from([None, *range(1, 9), 4096]),
        rope_theta=st.sampled_from([1e4, 1e6, 1e8]),
        rms_norm_eps=st.sampled_from([1e-5, 1e-6]),
        tie_word_embeddings=st.booleans(),
        max_position_embeddings=st.sampled_from([256, 32768, 131072]),
    )


@settings(max_examples=40)
@given(
    config=configs(),
    dtype=st.sampled_from(TYPES),
    way=st.lists(st.sampled_from(sorted(FORMATS)), min_size=1, max_size=3),
    shards=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_from_hf_any_way_and_back_every_bit_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    config: MistralConfig,
    dtype: str,
    way: list[str],
    shards: int,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("way")
    source = folder / "source"
    write_hf(source, config, random_tensors(config, np.random.default_rng(seed)), shards, dtype)
    path = source
    for number, to in enumerate([*way, "hf"]):
        path = mp.convert(path, folder / f"{number}.{to}", to)
        assert answers(path) == answers(source)
    assert bits(path) == bits(source)


@settings(max_examples=20)
@given(
    config=configs(),
    dtype=st.sampled_from(TYPES),
    form=st.sampled_from(["safetensors", "pth"]),
    middle=st.sampled_from(["hf", "mlx", "gguf"]),
)
def test_from_raw_and_back_the_files_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: MistralConfig, dtype: str, form: str, middle: str
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    config = small_config(**{**config.to_dict(), "tie_word_embeddings": False, "max_position_embeddings": 131072})
    write_raw(folder / "source", config, random_tensors(config, np.random.default_rng(0)), form, dtype)
    mp.convert(folder / "source", folder / "middle", middle)
    mp.convert(folder / "middle", folder / "back", "raw")
    params = [json.loads((folder / name / "params.json").read_text()) for name in ("source", "back")]
    assert params[0] == params[1]
    if form == "pth":
        mp.convert(folder / "source", folder / "whole", "raw")
    names = [folder / ("source" if form == "safetensors" else "whole"), folder / "back"]
    files = [stored(name / "consolidated.safetensors") for name in names]
    assert files[0] == files[1]


def stored(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """The raw content of a safetensors file, read by the package safetensors."""
    import safetensors

    return {
        name: (entry["dtype"], entry["shape"], bytes(entry["data"]))
        for name, entry in safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    }


@pytest.mark.parametrize("quantization", sorted(QUANTIZED))
def test_ggml_blocks_stay_in_gguf_and_keep_their_values_elsewhere(tmp_path: Path, quantization: str) -> None:
    config = small_config(hidden_size=256, intermediate_size=256, head_dim=64)
    tensors = random_tensors(config, np.random.default_rng(0), quantization)
    write_gguf(tmp_path / "m.gguf", config, tensors, quantization, metadata={"general.author": "someone"})
    source = open_checkpoint(tmp_path / "m.gguf")
    again = open_checkpoint(mp.convert(tmp_path / "m.gguf", tmp_path / "again.gguf", "gguf"))
    assert again.metadata["general.author"] == "someone"
    values = open_checkpoint(mp.convert(tmp_path / "m.gguf", tmp_path / "hf", "hf")).tensors
    for name, tensor in source.tensors.items():
        kept = again.tensors[name]
        assert kept.dtype == tensor.dtype
        if isinstance(tensor, BlockTensor):
            assert isinstance(kept, BlockTensor)
            np.testing.assert_array_equal(kept.blocks(), tensor.blocks())
        assert values[name].dtype == "float32"
        np.testing.assert_array_equal(values[name].numpy(), tensor.numpy())


def test_split_files_become_one(tmp_path: Path) -> None:
    config = small_config()
    write_gguf(tmp_path / "m.gguf", config, random_tensors(config, np.random.default_rng(0)), split_max_tensors=5)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) > 2
    whole = mp.convert(parts[0], tmp_path / "whole" / "m.gguf", "gguf")
    assert bits(whole) == bits(parts[0])


def write_mlx(folder: Path) -> None:
    """A model packed by MLX, in which the head has other bits than the rest."""
    import mlx.core as mx

    config = small_config(hidden_size=64, intermediate_size=128)
    arrays: dict[str, mx.array] = {}
    how: dict[str, Any] = {"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 8}}
    for name, values in random_tensors(config, np.random.default_rng(0)).items():
        own = how.get(name.removesuffix(".weight"), how)
        weight, module = mx.array(values).astype(mx.bfloat16), name.removesuffix(".weight")
        if values.ndim == 1:
            arrays[name] = weight
            continue
        codes, scales, biases = mx.quantize(weight, own["group_size"], own["bits"])
        arrays |= {name: codes, f"{module}.scales": scales, f"{module}.biases": biases}
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
    kind = {"model_type": "mistral", "quantization": how, "quantization_config": how}
    (folder / "config.json").write_text(json.dumps(config.to_dict() | kind))


def test_mlx_s_groups_stay_in_mlx_and_keep_their_values_elsewhere(tmp_path: Path) -> None:
    write_mlx(tmp_path / "source")
    source = open_checkpoint(tmp_path / "source")
    again = open_checkpoint(mp.convert(tmp_path / "source", tmp_path / "again", "mlx"))
    assert stored(tmp_path / "again" / "model.safetensors") == stored(tmp_path / "source" / "model.safetensors")
    for key in ("quantization", "quantization_config"):
        assert again.config.extra[key] == source.config.extra[key]
    for to in ("hf", "gguf", "raw"):
        values = open_checkpoint(mp.convert(tmp_path / "source", tmp_path / f"m.{to}", to)).tensors
        for name, tensor in source.tensors.items():
            np.testing.assert_array_equal(values[name].numpy(), tensor.numpy())
            assert not isinstance(values[name], AffineTensor)


W4A16 = test_compressed_tensors.SCHEMES["w4a16 asym"]


@pytest.mark.parametrize("kind", ["awq", "gptq", "fp8", "w4a16"])
@pytest.mark.parametrize("to", sorted(FORMATS))
def test_packed_weights_keep_their_values(tmp_path: Path, kind: str, to: str) -> None:
    how, packer = {
        "awq": (test_awq.HOW, test_awq.Packer(32)),
        "gptq": (test_gptq.HOW, test_gptq.Packer(4, 32, True, True, 1)),
        "fp8": (test_fp8.HOW, test_fp8.Packer("rows", (1, 1))),
        "w4a16": (test_compressed_tensors.HOW, test_compressed_tensors.Packer(**W4A16)),
    }[kind]
    write_packed(tmp_path / "source", test_gptq.CONFIG, how, packer)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match=r"14 matrices \(.*\) are unpacked to float32, 4 bytes a weight"):
        mp.convert(tmp_path / "source", tmp_path / "m", to)
    expected, found = open_checkpoint(tmp_path / "source").tensors, open_checkpoint(tmp_path / "m").tensors
    assert "quantization_config" not in open_checkpoint(tmp_path / "m").config.extra
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.numpy(), err_msg=name)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("to", sorted(FORMATS))
def test_a_float_type_for_all_weights_rounds_to_the_nearest(tmp_path: Path, dtype: str, to: str) -> None:
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    write_hf(tmp_path / "source", config, tensors)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        found = open_checkpoint(mp.convert(tmp_path / "source", tmp_path / "m", to, dtype=dtype)).tensors
    assert any("rounded" in str(notice.message) for notice in notices) == (dtype != "float32")
    for name, values in tensors.items():
        vector = values.ndim == 1 and to == "gguf"
        expected: NDArray[np.float32] = (
            torch.tensor(values).to(getattr(torch, "float32" if vector else dtype)).float().numpy()
        )
        assert found[name].dtype == ("float32" if vector else dtype)
        np.testing.assert_array_equal(found[name].numpy(), expected, err_msg=name)


@pytest.mark.parametrize("to", ["hf", "gguf", "mlx"])
def test_windows_of_several_sizes_are_for_raw_files_only(tmp_path: Path, to: str) -> None:
    config = small_config(sliding_window=(4, 8))
    write_hf(tmp_path / "source", config, random_tensors(config, np.random.default_rng(0)))
    with pytest.raises(ConfigError, match="convert it to raw"):
        mp.convert(tmp_path / "source", tmp_path / "m", to)
    assert not (tmp_path / "m").exists()
    assert open_checkpoint(mp.convert(tmp_path / "source", tmp_path / "raw", "raw")).config.layer_windows == (4, 8)
    mixed = small_config(sliding_window=(None, 8))
    write_hf(tmp_path / "mixed", mixed, random_tensors(mixed, np.random.default_rng(0)))
    assert open_checkpoint(mp.convert(tmp_path / "mixed", tmp_path / "some", to)).config.layer_windows == (None, 8)
    same = small_config(sliding_window=(8, 8))
    write_hf(tmp_path / "same", same, random_tensors(same, np.random.default_rng(0)))
    assert open_checkpoint(mp.convert(tmp_path / "same", tmp_path / "m", to)).config.layer_windows == (8, 8)


def test_the_window_of_v01_is_inferred_with_a_notice_or_given(tmp_path: Path) -> None:
    v01 = small_config(
        vocab_size=32000, intermediate_size=14336, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8,
        hidden_size=32, head_dim=4, rope_theta=1e4,
    )  # fmt: skip
    write_gguf(tmp_path / "m.gguf", v01, random_tensors(v01, np.random.default_rng(0)), "Q4_0")
    with pytest.warns(UserWarning, match="a window of 4096 was inferred"):
        mp.convert(tmp_path / "m.gguf", tmp_path / "a", "hf")
    assert open_checkpoint(tmp_path / "a").config.layer_windows == (4096,)
    for to in FORMATS:  # written files state that there is no window, so nothing is inferred again
        with warnings.catch_warnings(record=True) as notices:
            warnings.simplefilter("always")
            path = mp.convert(tmp_path / "m.gguf", tmp_path / f"b.{to}", to, window=None)
        assert not any("inferred" in str(notice.message) for notice in notices)
        assert open_checkpoint(path).config.layer_windows == (None,)


def test_tensors_that_are_no_parameters_are_named_and_left_out(tmp_path: Path) -> None:
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    write_hf(tmp_path / "a", config, tensors | {"score.weight": np.ones((2, 64), np.float32)})
    with pytest.warns(UserWarning, match=r"1 tensors that are not parameters .* dropped: score\.weight"):
        mp.convert(tmp_path / "a", tmp_path / "b", "hf")
    assert open_checkpoint(tmp_path / "b").tensors.keys() == tensors.keys()
    del tensors["model.norm.weight"]
    write_hf(tmp_path / "a", config, tensors)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing"):
        mp.convert(tmp_path / "a", tmp_path / "c", "gguf")
