"""GGUF files: config, vocabulary, tensor types, the q/k permutation, and refused files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from hypothesis import given
from hypothesis import strategies as st
from weights.files import random_tensors, small_config, write_gguf

from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.tokenizer.source import GGUFVocabulary
from mistral_portable.weights import DenseTensor, QuantTensor, open_checkpoint
from mistral_portable.weights.blocks import QUANTIZED

CONFIG = small_config()
TENSORS = random_tensors(CONFIG, np.random.default_rng(0))
VOCABULARY = GGUFVocabulary(
    model="llama",
    tokens=(b"<unk>", b"<s>", b"</s>", b"\xe2\x96\x81a"),
    scores=(0.0, 0.0, 0.0, -1.5),
    types=(2, 3, 3, 1),
    merges=(),
    pre="default",
    bos_token_id=1,
    eos_token_id=2,
    unknown_token_id=0,
    add_bos=True,
    add_space_prefix=True,
    chat_template="{{ messages }}",
)


@pytest.mark.parametrize("architecture", ["llama", "mistral3"])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        small_config(sliding_window=8, rope_theta=1e6, head_dim=32),
        small_config(num_key_value_heads=4, tie_word_embeddings=True),
        small_config(num_key_value_heads=1),
    ],
    ids=["plain", "window", "tied", "mqa"],
)
def test_config_and_values_come_back(tmp_path: Path, architecture: str, config: Any) -> None:
    tensors = random_tensors(config, np.random.default_rng(0))
    path = tmp_path / "model.gguf"
    write_gguf(path, config, tensors, architecture=architecture, vocabulary=VOCABULARY)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.path, checkpoint.format) == (path, "gguf")
    assert checkpoint.config == config
    assert checkpoint.notices == ()
    assert checkpoint.metadata["general.architecture"] == architecture
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, values in tensors.items():
        assert np.array_equal(checkpoint.tensors[name].numpy(), values), name


@pytest.mark.parametrize("quantization", ["F16", "BF16", *sorted(QUANTIZED)])
def test_every_type_stays_as_it_is_stored(tmp_path: Path, quantization: str) -> None:
    config = small_config(hidden_size=256, intermediate_size=512, head_dim=64)
    packed = quantization in QUANTIZED
    tensors = random_tensors(config, np.random.default_rng(0), quantization if packed else None)
    path = tmp_path / "model.gguf"
    write_gguf(path, config, tensors, quantization)
    opened = open_checkpoint(path).tensors
    kind = GGMLQuantizationType[quantization]
    for name, values in tensors.items():
        tensor = opened[name]
        if values.ndim == 1:
            assert tensor.dtype == "float32"
        elif packed:
            assert isinstance(tensor, QuantTensor)
            assert (tensor.dtype, tensor.type) == (quantization.lower(), kind)
            assert np.array_equal(tensor.blocks(), values)
            assert tensor.numpy().tobytes() == quants.dequantize(values, kind).tobytes()
        else:
            assert isinstance(tensor, DenseTensor)
            assert tensor.dtype == {"F16": "float16", "BF16": "bfloat16"}[quantization]
            stored = quants.quantize(values, kind)
            assert tensor.raw().tobytes() == stored.tobytes()


@given(data=st.data())
def test_the_header_is_read_as_gguf_reads_it(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Our reader of headers against `gguf.GGUFReader`, on drawn metadata."""
    scalar = st.one_of(st.booleans(), st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False), st.text())
    array = st.one_of(
        st.lists(st.text(min_size=1), min_size=1),
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1),
        st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    )
    key = st.text(st.characters(codec="ascii", categories=["L"]), min_size=1)
    metadata = data.draw(st.dictionaries(key.map("drawn.{}".format), scalar | array))
    path = tmp_path_factory.mktemp("drawn") / "model.gguf"
    write_gguf(path, CONFIG, TENSORS, metadata=metadata)
    opened = open_checkpoint(path)
    reader = GGUFReader(path)
    for name, field in reader.fields.items():
        expected = field.contents()
        if name.startswith("GGUF.") or isinstance(expected, list):
            assert name not in opened.metadata
        elif isinstance(expected, float):
            assert np.float32(opened.metadata[name]).tobytes() == np.float32(expected).tobytes()  # type: ignore[arg-type]
        else:
            assert opened.metadata[name] == expected


def test_float32_metadata_keep_their_decimal_value(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, metadata={"llama.attention.layer_norm_rms_epsilon": 1e-5})
    assert open_checkpoint(tmp_path / "m.gguf").config.rms_norm_eps == 1e-5


@pytest.mark.parametrize(
    "vocabulary",
    [
        VOCABULARY,
        replace(VOCABULARY, add_bos=False, add_space_prefix=False, unknown_token_id=None, chat_template=None),
        replace(VOCABULARY, model="gpt2", pre="tekken", scores=(), merges=(b"a b", b"c d"), add_space_prefix=False),
    ],
    ids=["spm", "flags", "tekken"],
)
def test_the_vocabulary_comes_back(tmp_path: Path, vocabulary: GGUFVocabulary) -> None:
    config = replace(CONFIG, bos_token_id=1, eos_token_id=2)
    write_gguf(tmp_path / "model.gguf", config, TENSORS, vocabulary=vocabulary)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.tokenizer == vocabulary
    assert checkpoint.config == config


@pytest.mark.filterwarnings("ignore")
def test_tokens_that_are_empty_or_there_already(tmp_path: Path) -> None:
    """They have names of their own, which no text is encoded as, and a notice each."""
    tokens = (*VOCABULARY.tokens, b"<s>", b"")
    odd = replace(VOCABULARY, tokens=tokens, types=(2, 3, 3, 1, 3, 1), scores=(0.0,) * 6)
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, vocabulary=odd)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    found = (*VOCABULARY.tokens, b"[SAME_4]", b"[EMPTY_5]")
    assert checkpoint.tokenizer == replace(odd, tokens=found, types=(2, 3, 3, 1, 5, 5))
    assert len(checkpoint.notices) == 2
    assert "token 4 has the same text as token 1" in checkpoint.notices[0]


def test_further_ends(tmp_path: Path) -> None:
    ends = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 0}
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, vocabulary=VOCABULARY, metadata=ends)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.ends == (3, 0)
    assert checkpoint.tokenizer == replace(VOCABULARY, ends=(3, 0))


def test_llama_cpp_defaults_of_a_bare_vocabulary(tmp_path: Path) -> None:
    bare: dict[str, Any] = dict.fromkeys(
        ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.token_type"]
    )
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, vocabulary=VOCABULARY, metadata=bare)
    assert open_checkpoint(tmp_path / "m.gguf").tokenizer == replace(VOCABULARY, types=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.tokens", [1, 2, 3, 4]),
        ("tokenizer.ggml.tokens", None),
        ("tokenizer.ggml.scores", [1.0]),
        ("tokenizer.ggml.scores", ["a", "b", "c", "d"]),
        ("tokenizer.ggml.token_type", [1, 1, 1, 1, 1]),
        ("tokenizer.ggml.unknown_token_id", "none"),
    ],
)
def test_a_broken_vocabulary_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, vocabulary=VOCABULARY, metadata={key: value})
    with pytest.raises(CheckpointError, match=key):
        open_checkpoint(tmp_path / "m.gguf")


def test_an_unknown_tokenizer_is_a_notice(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, vocabulary=replace(VOCABULARY, model="bert"))
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.tokenizer is None
    assert "'bert'" in checkpoint.notices[0]


FIRST_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 16,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 2,
}


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, 4096),
        ({"vocab_size": 32002}, 4096),
        ({"rope_theta": 1e6}, None),
        ({"vocab_size": 32003}, 4096),
        ({"vocab_size": 43000}, 4096),
        ({"vocab_size": 31999}, None),
        ({"num_key_value_heads": 4}, None),
        ({"intermediate_size": 14335}, None),
        ({"sliding_window": 77}, 77),
    ],
)
def test_the_window_of_v01_is_inferred_with_a_notice(tmp_path: Path, changes: dict[str, Any], window: int) -> None:
    config = small_config(**(FIRST_7B | changes))
    write_gguf(tmp_path / "m.gguf", config, random_tensors(config, np.random.default_rng(0)), vocabulary=VOCABULARY)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.config.sliding_window == window
    assert len(checkpoint.notices) == (window == 4096)
    assert all("--window" in notice and "4096" in notice for notice in checkpoint.notices)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type='longrope'"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.5}, "factor=0.5"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor=0.5"),
        ({"llama.rope.scaling.factor": 4.0}, "rope.scaling.factor=4.0"),
        ({"llama.expert_count": 8}, "num_experts_per_tok=0"),
        ({"llama.expert_count": 8, "llama.expert_used_count": 9}, "num_experts_per_tok=9"),
        ({"llama.expert_count": 2**31 - 1, "llama.expert_used_count": 2}, "at most"),
        ({"llama.expert_gating_func": 2}, "expert_gating_func=2"),
        ({"llama.attention.temperature_scale": 0.1}, "temperature_scale"),
        ({"llama.attention.sliding_window_pattern": ["a", "b"]}, "sliding_window_pattern"),
        ({"llama.attention.sliding_window_pattern": [True, False, True]}, "sliding_window_pattern"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is an array"),
        ({"llama.attention.head_count": 3}, "num_key_value_heads=2"),
        ({"llama.attention.value_length": 8}, "value_length=8"),
        ({"llama.rope.dimension_count": 8}, "dimension_count=8"),
        ({"llama.rope.freq_base": "high"}, "rope_theta='high'"),
        ({"llama.block_count": 20_000}, "num_hidden_layers=20000"),
    ],
)
def test_unsupported_hyper_parameters_are_named(tmp_path: Path, metadata: dict[str, Any], named: str) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, metadata=metadata)
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert named in str(caught.value)


def test_neutral_rope_scaling_is_accepted(tmp_path: Path) -> None:
    neutral = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0, "llama.expert_count": 0}
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, metadata=neutral)
    assert open_checkpoint(tmp_path / "m.gguf").config == CONFIG


def test_missing_hyper_parameters_are_named_together(tmp_path: Path) -> None:
    lacking: dict[str, Any] = dict.fromkeys(["llama.block_count", "llama.embedding_length"])
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, metadata=lacking)
    with pytest.raises(CheckpointError, match=r"lacks llama\.embedding_length, llama\.block_count"):
        open_checkpoint(tmp_path / "m.gguf")


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, architecture="qwen2")
    with pytest.raises(CheckpointError, match="'qwen2' is not supported, llama and mistral3 are"):
        open_checkpoint(tmp_path / "m.gguf")


def split(path: Path, parts: int) -> list[Path]:
    """Write a split file with gguf's own splitter; returns the parts."""
    write_gguf(path, CONFIG, TENSORS, split_max_tensors=-(-len(TENSORS) // parts))
    return sorted(path.parent.glob(f"{path.stem}-*.gguf"))


@pytest.mark.parametrize("given", [0, 1, 2, None], ids=["first", "middle", "last", "folder"])
def test_split_files_are_one_model(tmp_path: Path, given: int | None) -> None:
    parts = split(tmp_path / "m.gguf", 3)
    assert len(parts) == 3
    checkpoint = open_checkpoint(tmp_path if given is None else parts[given])
    assert (checkpoint.path, checkpoint.config) == (parts[0], CONFIG)
    assert checkpoint.tensors.keys() == TENSORS.keys()
    for name, values in TENSORS.items():
        assert np.array_equal(checkpoint.tensors[name].numpy(), values), name


def test_parts_of_split_files_that_are_missing_or_swapped_are_named(tmp_path: Path) -> None:
    parts = split(tmp_path / "m.gguf", 3)
    parts[1].rename(tmp_path / "spare")
    with pytest.raises(CheckpointError, match=r"are missing: m-00002-of-00003\.gguf"):
        open_checkpoint(parts[0])
    (tmp_path / "spare").rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"renamed\.gguf: its metadata have part 1 .* of 3"):
        open_checkpoint(tmp_path / "renamed.gguf")
    (tmp_path / "renamed.gguf").rename(parts[1])
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf: its metadata have part 1"):
        open_checkpoint(parts[0])


@pytest.mark.parametrize("name", ["m-00000-of-00000.gguf", "m-00002-of-00001.gguf", "m-99999-of-99999.gguf"])
def test_numbers_of_parts_that_lie(tmp_path: Path, name: str) -> None:
    write_gguf(tmp_path / name, CONFIG, TENSORS)
    with pytest.raises(CheckpointError, match=r"parts of the split file are missing|its metadata have"):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(("kind", "row"), [("F64", 8), ("I32", 4), ("TQ1_0", 54), ("IQ2_XXS", 66)])
def test_other_tensor_types_are_refused_by_name(tmp_path: Path, kind: str, row: int) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, {"odd.weight": np.zeros((1, row), np.uint8)}, kind)
    with pytest.raises(CheckpointError, match=rf"'odd\.weight' has the type {kind}"):
        open_checkpoint(tmp_path / "m.gguf")


def test_scaled_rope_frequencies_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS | {"rope_freqs.weight": np.ones(8, np.float32)})
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight"):
        open_checkpoint(tmp_path / "m.gguf")


def test_biases_get_the_names_of_their_modules(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS | {"blk.0.attn_q.bias": np.ones(64, np.float32)})
    assert "model.layers.0.self_attn.q_proj.bias" in open_checkpoint(tmp_path / "m.gguf").tensors  # refused by `load`


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (b"GGUF" + (1).to_bytes(4, "little"), "version 1 is not supported"),
        (b"GGUF" + (3).to_bytes(4, "big"), "big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 8, "truncated"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\0" * 8 + b"\xff" * 8, "truncated"),
        (b"GGUF", "truncated"),
    ],
)
def test_headers_that_lie(tmp_path: Path, start: bytes, named: str) -> None:
    (tmp_path / "m.gguf").write_bytes(start)
    with pytest.raises(CheckpointError, match=named):
        open_checkpoint(tmp_path / "m.gguf")
