"""HF folders: one file or shards, every float type, and refused files."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights.files import bfloat16, random_tensors, small_config, write_hf, write_safetensors

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.tokenizer.source import TokenizerFile, TokenizerFolder
from mistral_portable.weights import DenseTensor, open_checkpoint

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_all_values_come_back(tmp_path: Path, shards: int, dtype: str) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards, dtype)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path
    assert checkpoint.format == "safetensors"
    assert checkpoint.config == MistralConfig.from_file(tmp_path / "config.json")
    assert checkpoint.metadata == {"format": "np"}
    assert checkpoint.notices == ()
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        tensor = checkpoint.tensors[name]
        assert isinstance(tensor, DenseTensor)
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, values.shape, dtype)
        stored = bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
        assert tensor.nbytes == stored.nbytes
        assert np.array_equal(tensor.raw(), stored)


def test_a_weight_file_is_opened_with_the_config_beside_it(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.tensors.keys() == TENSORS.keys()
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_the_bare_model_has_no_prefix(tmp_path: Path) -> None:
    config = small_config(extra={"architectures": ["MistralModel"]})
    bare = {name.removeprefix("model."): t for name, t in TENSORS.items() if name != "lm_head.weight"}
    write_hf(tmp_path, config, bare)
    tensors = open_checkpoint(tmp_path).tensors
    assert tensors.keys() == TENSORS.keys() - {"lm_head.weight"}
    assert tensors["model.norm.weight"].name == "model.norm.weight"


def test_heads_and_other_tensors_are_kept(tmp_path: Path) -> None:
    config = small_config(extra={"architectures": ["MistralForTokenClassification"]})
    tensors = dict(TENSORS) | {"score.weight": np.ones((3, 64), np.float32), "score.bias": np.ones(3, np.float32)}
    del tensors["lm_head.weight"]
    write_hf(tmp_path, config, tensors)
    assert open_checkpoint(tmp_path).tensors["score.bias"].numpy().tolist() == [1, 1, 1]


def test_shards_without_an_index(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=2)
    (tmp_path / INDEX).unlink()
    assert open_checkpoint(tmp_path).tensors.keys() == TENSORS.keys()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    (tmp_path / "model.safetensors").rename(tmp_path / "first.safetensors")
    write_safetensors(tmp_path / "more.safetensors", {"norm.weight": TENSORS["model.norm.weight"]})
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is stored twice: .*first\.safetensors .*more"):
        open_checkpoint(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=3)
    for shard in (1, 3):
        (tmp_path / f"model-0000{shard}-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors; model-00003-of-00003\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_not_taken_from_another(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    name = "model.norm.weight"
    other = ({*index["weight_map"].values()} - {index["weight_map"][name]}).pop()
    index["weight_map"][name] = other
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert name not in open_checkpoint(tmp_path).tensors  # `binding.check_tensors` names it


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "a\0b", "", 7])
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, file: Any) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=2)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    with pytest.raises(CheckpointError, match="not a shard in this folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000, "\xff"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    write_hf(tmp_path, CONFIG, TENSORS, shards=2)
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"index\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        ("F64", r"model\.norm\.weight' is float64"),
        ("I32", r"model\.norm\.weight' is int32, and no file says how it is packed"),
        ("F8_E4M3", r"model\.norm\.weight' is float8_e4m3"),
        ("F8_E8M0", r"'model\.norm\.weight' \(F8_E8M0\)"),
    ],
)
def test_other_dtypes_are_refused_by_name(tmp_path: Path, dtype: str, named: str) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    path = tmp_path / "model.safetensors"
    size = {"F64": 8, "I32": 4}.get(dtype, 1)
    header = json.dumps({"model.norm.weight": {"dtype": dtype, "shape": [1], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"model_type": "mistral4"}, r"model_type='mistral4' is not supported: there is no latent attention \(MLA\)"),
        ({"model_type": "voxtral"}, "model_type='voxtral' is not supported: there is no sound here"),
        ({"model_type": "pixtral"}, "model_type='pixtral' is not supported: there is no vision tower here"),
        ({"audio_config": {"hidden_size": 8}}, "audio_config is not supported: there is no sound here"),
        ({"model_type": "mamba2"}, "there is no state space layer here"),
        ({"model_type": "llama"}, "model_type='llama' is not supported: mistral, ministral, ministral3, mixtral are"),
        ({"model_type": None}, "model_type=None"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path: Path, extra: dict[str, Any], named: str) -> None:
    write_hf(tmp_path, small_config(extra=extra), TENSORS)
    with pytest.raises(ConfigError, match=named):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("outer", "text", "named"),
    [
        ("mistral3", "mistral", ""),
        ("llava", "mistral", ""),
        ("mistral3", "mistral4", "latent attention"),
        ("voxtral", "llama", "model_type='voxtral' is not supported: there is no sound here"),
        ("voxtral_realtime", "voxtral_realtime_text", "there is no sound here"),
        ("mistral3", "qwen2", "model_type='qwen2' is not supported: mistral"),
    ],
)
def test_the_text_of_vision_models_runs_and_sound_is_refused(tmp_path: Path, outer: str, text: str, named: str) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    inner = CONFIG.to_dict() | {"model_type": text}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": outer, "text_config": inner, "vision_config": {}}))
    with pytest.raises(ConfigError, match=named) if named else contextlib.nullcontext():
        assert open_checkpoint(tmp_path).config.hidden_size == CONFIG.hidden_size


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ([], None),
        (["tokenizer.model"], "tokenizer.model"),
        (["tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v2"], "tokenizer.model.v3"),
        (["tokenizer.model.v3", "tekken.json", "tokenizer.json"], "tekken.json"),
    ],
)
def test_the_newest_tokenizer_file_is_taken(tmp_path: Path, files: list[str], chosen: str | None) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    for file in files:
        (tmp_path / file).touch()
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tokenizer == (TokenizerFile(tmp_path / chosen) if chosen else None)
    assert checkpoint.notices == ()


def test_a_tokenizer_json_alone(tmp_path: Path) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    (tmp_path / "tokenizer.json").touch()
    assert open_checkpoint(tmp_path).tokenizer == TokenizerFolder(tmp_path)


@pytest.mark.parametrize(
    ("written", "ends"),
    [('{"eos_token_id": 7}', (7,)), ('{"eos_token_id": [2, 7, -1, "a", true]}', (2, 7)), ("{}", ()), ("[", ())],
)
def test_ends_of_generation_config(tmp_path: Path, written: str, ends: tuple[int, ...]) -> None:
    write_hf(tmp_path, CONFIG, TENSORS)
    (tmp_path / "generation_config.json").write_text(written)
    assert open_checkpoint(tmp_path).ends == ends


def test_shards_may_be_links_as_in_the_hub_cache(tmp_path: Path) -> None:
    write_hf(tmp_path / "blobs", CONFIG, TENSORS, shards=2)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (snapshot / path.name).symlink_to(path)
    assert open_checkpoint(snapshot).tensors.keys() == TENSORS.keys()
