"""Files of random weights: every type opens, with sane values, the right mixture, and a tokenizer that works."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mistral_portable.config import MistralConfig
from mistral_portable.tokenizer import load_tokenizer
from mistral_portable.weights import open_checkpoint
from tools.make_random_gguf import FAMILIES, TYPES, Family, main, write

SMALL = MistralConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    sliding_window=64,
)
TOKENIZER = FAMILIES["7b-v0.3"].tokenizer


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_has_sane_values(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, Family(SMALL, TOKENIZER), kind)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == SMALL
    for name, tensor in checkpoint.tensors.items():
        values = tensor.numpy()
        if values.ndim == 1:
            assert np.array_equal(values, np.ones(256)), name
            continue
        assert np.isfinite(values).all(), name
        assert values.std() == pytest.approx(0.02, rel=0.15), name
        assert abs(values.mean()) < 0.003, name  # Q4_0's codes are -8..7
        assert len(np.unique(values, axis=0)) == len(values), name
    dense = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    base = dense.get(kind) or kind.removesuffix("_M").lower()
    assert checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].dtype == base
    quantized_output = "q8_0" if kind == "Q8_0" else "q6_k"
    assert checkpoint.tensors["lm_head.weight"].dtype == (base if kind in dense else quantized_output)


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q5_K_M"])
def test_mixtures_are_those_of_llama_cpp(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, Family(replace(SMALL, num_hidden_layers=8), TOKENIZER), kind)
    better = {name for name, tensor in open_checkpoint(path).tensors.items() if tensor.dtype == "q6_k"}
    modules = ("self_attn.v_proj", "mlp.down_proj")
    # The first and the last eighth, and the third of each three between: llama.cpp's use_more_bits(i, 8).
    layers = {f"model.layers.{layer}.{module}.weight" for layer in (0, 3, 6, 7) for module in modules}
    assert better == layers | {"lm_head.weight"}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_have_their_shape(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    # The config that is written, in a file that is small: one narrow layer, and 512 tokens, as tekken's 131,072 take
    # two seconds to write and to read. That the vocabulary fits the tokenizer is below.
    layers = len(family.config.sliding_window) if isinstance(family.config.sliding_window, tuple) else 1
    config = replace(
        family.config,
        vocab_size=512,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=layers,
        head_dim=2,
    )
    path = tmp_path / "model.gguf"
    write(path, Family(config, TOKENIZER), "Q8_0")
    assert open_checkpoint(path).config == config


@pytest.mark.parametrize("file", sorted({family.tokenizer for family in FAMILIES.values()}), ids=lambda file: file.name)
def test_families_have_their_tokenizer(file: Path, tmp_path: Path) -> None:
    """Each tokenizer is written once, for all families that have it."""
    configs = [family.config for family in FAMILIES.values() if family.tokenizer == file]
    config = replace(SMALL, hidden_size=32, intermediate_size=32, vocab_size=configs[0].vocab_size)
    path = tmp_path / "model.gguf"
    write(path, Family(config, file), "Q8_0")
    source = open_checkpoint(path).tokenizer
    assert source is not None
    tokenizer = load_tokenizer(source)
    assert {config.vocab_size for config in configs} == {tokenizer.vocab_size}
    assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"


def test_no_window_is_written_as_such(tmp_path: Path) -> None:
    family = FAMILIES["7b-v0.1"]
    config = replace(family.config, hidden_size=32, num_hidden_layers=1, head_dim=2, sliding_window=None)
    write(tmp_path / "model.gguf", replace(family, config=config), "Q8_0")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert (checkpoint.config.sliding_window, checkpoint.notices) == (None, ())


def test_an_impossible_shape_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["make_random_gguf", "--layers", "0", "/nowhere/model.gguf"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "num_hidden_layers=0" in capsys.readouterr().err
