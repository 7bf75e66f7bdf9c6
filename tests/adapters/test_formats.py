"""llama.cpp's, mlx-lm's and mistral-finetune's adapters: each by the rule of its own format."""

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters.files import (
    HEAD,
    TABLE,
    Change,
    delta,
    linears,
    random_changes,
    write_gguf,
    write_mlx,
    write_peft,
    write_raw,
)
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from safetensors.numpy import load_file
from weights.files import random_tensors, small_config, write_hf, write_safetensors
from weights.files import write_raw as write_raw_model

import mistral_portable as mp
from mistral_portable.adapters import Adapter, open_adapter
from mistral_portable.config import MistralConfig

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG = small_config()
DECODER = [name for name in linears(CONFIG) if name.startswith("model.layers.")]
CHANGES = random_changes(CONFIG, linears(CONFIG), 32, np.random.default_rng(0))


def deltas(adapter: Adapter) -> dict[str, NDArray[np.float64]]:
    """The matrix that the adapter adds to each weight."""
    found = {}
    for name, change in adapter.low_rank.items():
        linear = change.transposed() if name == TABLE else change
        found[name] = delta((linear.down.numpy(), linear.up.numpy()), linear.scale)
    return found


def assert_adds(adapter: Adapter, changes: Mapping[str, Change], scale: float) -> None:
    """The adapter adds these changes times the scale, bit for bit."""
    found = deltas(adapter)
    assert found.keys() == changes.keys()
    for name, change in changes.items():
        assert np.array_equal(found[name], delta(change, scale)), name


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("in_folder", [False, True])
def test_gguf(tmp_path: Path, heads: int, in_folder: bool) -> None:
    config = small_config(num_key_value_heads=heads)
    changes = random_changes(config, linears(config), 3, np.random.default_rng(heads))
    path = write_gguf(tmp_path / "a.gguf", config, changes, alpha=6.0)
    assert_adds(open_adapter(tmp_path if in_folder else path, config), changes, 2.0)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (0.0, 1.0), (16.0, 0.5), (-32.0, -1.0)])
def test_the_scale_of_gguf_is_alpha_by_rank_and_one_without_alpha(
    tmp_path: Path, alpha: float | None, scale: float
) -> None:
    assert_adds(open_adapter(write_gguf(tmp_path / "a.gguf", CONFIG, CHANGES, alpha), CONFIG), CHANGES, scale)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_types_of_gguf(tmp_path: Path, kind: str) -> None:
    """Values are those of the stored blocks; packed ones become float32."""

    def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
        type = GGMLQuantizationType[kind]
        return quants.dequantize(quants.quantize(np.ascontiguousarray(values), type), type)

    names = [name for name in DECODER if "o_proj" in name or "mlp" in name]  # whose rows are not permuted
    changes = {name: CHANGES[name] for name in names}
    adapter = open_adapter(write_gguf(tmp_path / "a.gguf", CONFIG, changes, 32.0, kind), CONFIG)
    assert_adds(adapter, {name: (rounded(down), rounded(up)) for name, (down, up) in changes.items()}, 1.0)
    types = {each.dtype for change in adapter.low_rank.values() for each in (change.down, change.up)}
    assert types == {{"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_of_peft_stay_as_stored(tmp_path: Path, dtype: str) -> None:
    adapter = open_adapter(write_peft(tmp_path, CHANGES, dtype=dtype), CONFIG)
    assert {change.up.dtype for change in adapter.low_rank.values()} == {dtype}
    for name, (down, up) in CHANGES.items():
        found = adapter.low_rank[name].down.numpy()
        expected = up.T if name == TABLE else down
        assert np.abs(found - expected).max() <= 2.0**-8 * np.abs(expected).max()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(("scaling", "scale"), [(None, 2.0), (0.5, 0.5)])
def test_mistral_finetune(tmp_path: Path, scaling: float | None, scale: float, alone: bool) -> None:
    changes = {name: CHANGES[name] for name in DECODER}
    folder = write_raw(tmp_path, CONFIG, changes, scaling)
    assert_adds(open_adapter(folder / "lora.safetensors" if alone else folder, CONFIG), changes, scale)


def test_the_forward_rule_of_mistral_inference(tmp_path: Path) -> None:
    """`linear(x) + lora_B(lora_A(x)) * scaling`, with all matrices as they are in Mistral's own files."""
    rng = np.random.default_rng(5)
    write_raw_model(tmp_path / "base", CONFIG, random_tensors(CONFIG, rng))
    sizes = {"attention.wq": (64, 64), "attention.wk": (32, 64), "attention.wo": (64, 64), "feed_forward.w2": (64, 96)}
    pairs = {
        name: (rng.normal(0, 0.2, (4, columns)), rng.normal(0, 0.2, (rows, 4)))
        for name, (rows, columns) in sizes.items()
    }
    stored = {}
    for name, pair in pairs.items():
        for side, values in zip("AB", pair, strict=True):
            stored[f"layers.1.{name}.lora_{side}.weight"] = values.astype(np.float32)
    write_safetensors(tmp_path / "lora.safetensors", stored)
    out = mp.convert(tmp_path / "base", tmp_path / "out", "raw", merge_adapters=[(tmp_path / "lora.safetensors", 1.0)])
    before, after = (load_file(folder / "consolidated.safetensors") for folder in (tmp_path / "base", out))
    for name, (rows, columns) in sizes.items():
        x = rng.normal(0, 1, columns)
        a, b = (stored[f"layers.1.{name}.lora_{side}.weight"] for side in "AB")
        expected = before[f"layers.1.{name}.weight"] @ x + b @ (a @ x) * 2.0
        found = after[f"layers.1.{name}.weight"] @ x
        assert found.shape == (rows,)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_model_beside_lora_safetensors_says_nothing_of_its_scale(tmp_path: Path) -> None:
    folder = write_raw(tmp_path, CONFIG, {DECODER[0]: CHANGES[DECODER[0]]})
    (folder / "params.json").write_text(json.dumps({"dim": 64}))
    assert_adds(open_adapter(folder, CONFIG), {DECODER[0]: CHANGES[DECODER[0]]}, 2.0)


def test_mlx(tmp_path: Path) -> None:
    assert_adds(open_adapter(write_mlx(tmp_path, CHANGES, 20.0), CONFIG), CHANGES, 20.0)
    old = {"rank": 32, "alpha": 16.0, "scale": 10.0, "dropout": 0.0}  # until 2025; mlx-lm did not use this alpha
    assert_adds(open_adapter(write_mlx(tmp_path, CHANGES, lora_parameters=old), CONFIG), CHANGES, 10.0)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_of_mlx_lm(tmp_path: Path, tied: bool) -> None:
    """mlx-lm's own layers, saved as its trainer does."""
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    from mlx.utils import tree_flatten, tree_map
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    config = small_config(tie_word_embeddings=tied)
    tensors = random_tensors(config, np.random.default_rng(1))
    if tied:
        tensors.pop(HEAD, None)
    write_hf(tmp_path / "base", config, tensors)
    model: Any = load_model(tmp_path / "base")[0]
    model.freeze()
    keys = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "mlp.down_proj",
        "model.embed_tokens",
        *([] if tied else ["lm_head"]),
    ]
    settings = {"rank": 3, "scale": 4.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(model, 2, settings)
    mx.random.seed(0)
    model.update(tree_map(lambda values: mx.random.normal(values.shape) * 0.2, model.trainable_parameters()))
    (tmp_path / "adapter").mkdir()
    saved = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(saved))
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(tmp_path / "adapter" / "adapters.safetensors"), weights)
    theirs = np.array(model(mx.array([[1, 2, 3, 4]])))[0]
    out = mp.convert(tmp_path / "base", tmp_path / "out", "hf", merge_adapters=[(tmp_path / "adapter", 1.0)])
    with mp.load(out, backend="reference", dtype="float32") as merged:
        assert merged.config.tie_word_embeddings is tied
        assert np.abs(merged.logits([1, 2, 3, 4]) - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("format", ["peft", "gguf"])
def test_in_other_formats_a_change_of_a_tied_table_is_one_of_the_lookup_alone(tmp_path: Path, format: str) -> None:
    config = small_config(tie_word_embeddings=True)
    changes = {TABLE: CHANGES[TABLE]}
    path = write_peft(tmp_path, changes) if format == "peft" else write_gguf(tmp_path / "a.gguf", config, changes, 64.0)
    assert_adds(open_adapter(path, config), changes, 2.0)


@pytest.mark.parametrize("format", ["peft", "gguf", "mlx", "raw"])
def test_files_are_mapped(tmp_path: Path, format: str) -> None:
    """No copy of the file's 4 MB stays in memory."""
    config = small_config(hidden_size=512, intermediate_size=1024)
    changes = random_changes(config, linears(config), 128, np.random.default_rng(0))
    decoder = {name: change for name, change in changes.items() if name.startswith("model.layers.")}
    match format:
        case "peft":
            path = write_peft(tmp_path, decoder)
        case "gguf":
            path = write_gguf(tmp_path / "a.gguf", config, decoder, 1.0)
        case "mlx":
            path = write_mlx(tmp_path, decoder)
        case _:
            path = write_raw(tmp_path, config, decoder)
    open_adapter(path, config)  # what is imported once is not counted
    tracemalloc.start()
    adapter = open_adapter(path, config)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(change.down.nbytes + change.up.nbytes for change in adapter.low_rank.values()) > 4e6
    assert kept < 1e6


def test_all_formats_merge_alike(tmp_path: Path) -> None:
    config = MistralConfig(**{**CONFIG.to_dict(), "sliding_window": None})
    write_hf(tmp_path / "base", config, random_tensors(config, np.random.default_rng(1)))
    changes = {name: CHANGES[name] for name in DECODER}
    paths = [
        write_peft(tmp_path / "peft", changes, 2.0),
        write_gguf(tmp_path / "a.gguf", config, changes, 64.0),
        write_mlx(tmp_path / "mlx", changes, 2.0),
        write_raw(tmp_path / "raw", config, changes),
    ]
    files = []
    for number, path in enumerate(paths):
        out = mp.convert(tmp_path / "base", tmp_path / f"out{number}", "hf", merge_adapters=[(path, 1.0)])
        files.append((out / "model.safetensors").read_bytes())
    assert len(set(files)) == 1
    assert files[0] != (tmp_path / "base" / "model.safetensors").read_bytes()
