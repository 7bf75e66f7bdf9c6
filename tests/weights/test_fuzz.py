"""Damaged checkpoints either load correctly or raise a one-line error of the package, quickly and in little memory."""

import json
import shutil
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf.quants  # noqa: F401  # imported before memory is measured, as is safetensors
import numpy as np
import pytest
import safetensors.numpy  # noqa: F401
from hypothesis import example, given, settings
from hypothesis import strategies as st
from weights import test_awq, test_compressed_tensors, test_experts, test_fp8, test_gptq, test_packed_settings
from weights.damage import NUMBERS, Damage, damage
from weights.files import random_tensors, small_config, write_gguf, write_hf, write_raw, write_torch
from weights.packed_files import write_packed

from mistral_portable.boundary.binding import check_tensors
from mistral_portable.errors import MistralPortableError
from mistral_portable.graph import build
from mistral_portable.tokenizer.source import GGUFVocabulary
from mistral_portable.weights import open_checkpoint

CONFIG = small_config(
    vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16
)
VOCABULARY = GGUFVocabulary(
    model="llama",
    tokens=tuple(b"%d" % i for i in range(32)),
    scores=(0.0,) * 32,
    types=(1,) * 32,
    merges=(),
    pre="default",
    bos_token_id=1,
    eos_token_id=2,
    unknown_token_id=0,
    add_bos=True,
    add_space_prefix=True,
    chat_template=None,
)


def _opens_or_explains(path: Path) -> None:
    explanation = "it opened"
    started = time.process_time()
    tracemalloc.start()
    try:
        checkpoint = open_checkpoint(path)
        check_tensors(build(checkpoint.config), checkpoint.tensors, str(path))
        for tensor in checkpoint.tensors.values():
            assert tensor.numpy().shape == tensor.shape
    except MistralPortableError as error:
        explanation = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert explanation
    assert explanation.isprintable()  # one line without terminal control characters
    assert peak < 64e6
    assert time.process_time() - started < 10


def _apply(path: Path, damage: list[Damage]) -> None:
    data = path.read_bytes()
    for edit in damage:
        data = edit(data)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    write_hf(folder, CONFIG, random_tensors(CONFIG, np.random.default_rng(0)), shards=2, dtype="bfloat16")
    return folder


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, CONFIG, random_tensors(CONFIG, np.random.default_rng(0)), "Q4_0", VOCABULARY)
    return path


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def fresh_hf(hf: Path, scratch: Path) -> Callable[[], Path]:
    """Make an undamaged copy of the folder for each example."""

    def copy() -> Path:
        shutil.rmtree(scratch / "hf", ignore_errors=True)
        return Path(shutil.copytree(hf, scratch / "hf"))

    return copy


def test_the_undamaged_files_open(hf: Path, gguf_file: Path) -> None:
    assert open_checkpoint(hf).tensors.keys() == open_checkpoint(gguf_file).tensors.keys()


@given(damage=damage(header=700), file=st.sampled_from(["model-00001-of-00002.safetensors", "config.json"]))
def test_damaged_hf_files(fresh_hf: Callable[[], Path], damage: list[Damage], file: str) -> None:
    folder = fresh_hf()
    _apply(folder / file, damage)
    _opens_or_explains(folder)


@given(damage=damage(header=2200))
def test_damaged_gguf_files(gguf_file: Path, scratch: Path, damage: list[Damage]) -> None:
    path = scratch / "damaged.gguf"
    shutil.copyfile(gguf_file, path)
    _apply(path, damage)
    _opens_or_explains(path)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a checkpoint of each other format: the file to damage, in a folder with the other files that it needs."""
    folder, tensors = tmp_path_factory.mktemp("others"), random_tensors(CONFIG, np.random.default_rng(0))
    write_raw(folder / "raw", CONFIG, tensors, dtype="bfloat16")
    write_raw(folder / "torch", CONFIG, tensors, "pth", pieces=2)
    write_torch(folder / "bin", CONFIG, tensors, shards=2)
    shutil.copytree(folder / "bin", folder / "bin index")
    write_gguf(folder / "split.gguf", CONFIG, tensors, "Q4_0", VOCABULARY, split_max_tensors=6)
    (folder / "split").mkdir()
    for part in folder.glob("split-*.gguf"):
        part.rename(folder / "split" / part.name)
    (folder / "tar").mkdir()
    with tarfile.open(folder / "tar" / "m.tar", "w") as archive:
        archive.add(folder / "torch", "m")
    write_packed(folder / "awq", CONFIG, AWQ, test_awq.Packer(16))
    write_packed(folder / "gemv", CONFIG, AWQ | {"version": "gemv"}, test_awq.RowsPacker(16))
    for kind, packer in COMPRESSED.items():
        write_packed(folder / kind, CONFIG, packer.how, packer)
    write_packed(folder / "gptq", CONFIG, GPTQ, test_gptq.Packer(4, 16, True, True, 1))
    write_packed(folder / "settings", CONFIG, AWQ, test_awq.Packer(16))
    test_packed_settings.move_settings(folder / "settings", AWQ, "quant_config.json")
    write_packed(folder / "fp8", CONFIG, FP8, test_fp8.Packer("blocks", (16, 16)))
    test_experts.write_first_raw(folder / "mixtral", test_experts.first_raw(), 2)
    (folder / "experts").mkdir()
    test_experts.write_gguf(folder / "experts" / "m.gguf", "Q4_0", together=True)
    return {
        "experts": folder / "experts" / "m.gguf",
        "raw": folder / "raw" / "consolidated.safetensors",
        "params": folder / "raw" / "params.json",
        "torch": folder / "torch" / "consolidated.01.pth",
        "bin": folder / "bin" / "pytorch_model-00002-of-00002.bin",
        "bin index": folder / "bin index" / "pytorch_model.bin.index.json",
        "settings": folder / "settings" / "quant_config.json",
        "split": folder / "split" / "split-00002-of-00002.gguf",
        "tar": folder / "tar" / "m.tar",
        "mixtral": folder / "mixtral" / "consolidated.01.pt",
        **{kind: folder / kind / "model.safetensors" for kind in HF_PACKED},
    }


AWQ = test_awq.HOW | {"group_size": 16}
GPTQ = test_gptq.HOW | {"group_size": 16}
FP8 = test_fp8.HOW | {"weight_block_size": [16, 16]}
COMPRESSED = {
    "w4a16": test_compressed_tensors.Packer(**test_compressed_tensors.SCHEMES["w4a16 asym"]),
    "w8a8": test_compressed_tensors.Packer(**test_compressed_tensors.SCHEMES["w8a8 asym"]),
}
HF_PACKED = ["awq", "gemv", "gptq", "fp8", *COMPRESSED]
KINDS = ["raw", "params", "torch", "bin", "bin index", "settings", "split", "tar", *HF_PACKED, "experts", "mixtral"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_formats_open_undamaged(others: dict[str, Path], kind: str) -> None:
    checkpoint = open_checkpoint(others[kind] if kind == "tar" else others[kind].parent)
    check_tensors(build(checkpoint.config), checkpoint.tensors, kind)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(damage=damage(header=1500))
def test_damaged_files_of_the_other_formats(
    others: dict[str, Path], scratch: Path, kind: str, damage: list[Damage]
) -> None:
    shutil.rmtree(scratch / kind, ignore_errors=True)
    folder = Path(shutil.copytree(others[kind].parent, scratch / kind))
    _apply(folder / others[kind].name, damage)
    _opens_or_explains(folder / others[kind].name if kind == "tar" else folder)


@given(damage=damage(header=3000))
def test_damaged_directories_of_torch_files(others: dict[str, Path], scratch: Path, damage: list[Damage]) -> None:
    """Truncation keeps the pickle, which comes first, and loses the zip's directory, which comes last."""
    folder = scratch / "directory"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(others["torch"].parent, folder)
    path = folder / others["torch"].name
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    end = data[at:]
    for edit in damage:
        end = edit(end)
    path.write_bytes(data[:at] + end)
    _opens_or_explains(folder)


@given(
    values=st.dictionaries(
        st.sampled_from(
            [
                *["bits", "group_size", "version", "weight_block_size", "quant_method", "checkpoint_format", "dynamic"],
                *["format", "config_groups", "sparsity_config", "transform_config"],
            ]
        ),
        st.deferred(lambda: _JSON),
        min_size=1,
    )
)
@pytest.mark.parametrize("kind", HF_PACKED)
@settings(max_examples=15)
def test_any_json_in_the_quantization_config(
    others: dict[str, Path], scratch: Path, kind: str, values: dict[str, Any]
) -> None:
    folder = scratch / "json"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(others[kind].parent, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= values
    (folder / "config.json").write_text(json.dumps(config))
    _opens_or_explains(folder)


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | NUMBERS | st.integers(-2, 64),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = [
    *CONFIG.to_dict(),
    *["rope_parameters", "rope_scaling", "layer_types", "model_type", "architectures", "quantization_config", "dim"],
    *["num_local_experts", "num_experts_per_tok", "text_config"],
]
_YARN_KEYS = [
    *["factor", "original_max_position_embeddings", "beta_fast", "mscale", "mscale_all_dim", "attention_factor"],
    *["llama_4_scaling_beta", "truncate"],
]
_YARN = st.dictionaries(
    st.sampled_from(_YARN_KEYS),
    st.floats() | st.integers(0, 99) | NUMBERS,
).map(lambda keys: {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, **keys})


@given(values=st.dictionaries(st.sampled_from(_FIELDS), _JSON | _YARN, min_size=1, max_size=3))
@example(values={"rope_parameters": {"rope_type": "yarn", "factor": 1e308, "mscale": 1e308, "mscale_all_dim": 1e-308}})
@example(values={"num_hidden_layers": 1000, "num_local_experts": 16, "num_experts_per_tok": 2})
@example(values={"num_hidden_layers": 10_000})
def test_any_json_in_the_config(fresh_hf: Callable[[], Path], values: dict[str, Any]) -> None:
    folder = fresh_hf()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    _opens_or_explains(folder)


@given(index=_JSON | st.fixed_dictionaries({"weight_map": _JSON | st.dictionaries(st.text(), st.text())}))
def test_any_json_as_the_index(fresh_hf: Callable[[], Path], index: Any) -> None:
    folder = fresh_hf()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _opens_or_explains(folder)


_METADATA = [
    *["block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "expert_count"],
    *["attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"],
    *["attention.layer_norm_rms_epsilon", "attention.sliding_window", "rope.freq_base", "rope.scaling.type"],
    *["expert_used_count", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor"],
    *["rope.scaling.yarn_log_multiplier", "attention.sliding_window_pattern", "attention.temperature_scale"],
]
_SCALAR = st.booleans() | st.integers(0, 2**32 - 1) | st.integers(0, 64) | st.floats(width=32) | st.text()
_ARRAY = st.lists(st.integers(0, 9), min_size=1) | st.lists(st.text(min_size=1), min_size=1)


@given(
    values=st.dictionaries(st.sampled_from(_METADATA).map("llama.{}".format), _SCALAR | _ARRAY, max_size=3),
    tokenizer=st.dictionaries(
        st.sampled_from(["model", "tokens", "scores", "token_type", "bos_token_id", "add_bos_token", "pre"]).map(
            "tokenizer.ggml.{}".format
        ),
        _SCALAR | _ARRAY,
        max_size=2,
    ),
)
@example(values={"llama.block_count": 10_000}, tokenizer={})
def test_any_gguf_metadata(scratch: Path, values: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    path = scratch / "metadata.gguf"
    tensors = random_tensors(CONFIG, np.random.default_rng(0))
    write_gguf(path, CONFIG, tensors, vocabulary=VOCABULARY, metadata=values | tokenizer)
    _opens_or_explains(path)
