"""Adapters that cannot be read as they mean it are refused in one line, which names file, tensor or setting, and what
to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters.files import HEAD, TABLE, linears, random_changes, write_gguf, write_mlx, write_peft, write_raw
from weights.files import small_config, write_safetensors

from mistral_portable.adapters import open_adapter
from mistral_portable.errors import CheckpointError

CONFIG = small_config()
Q = "model.layers.0.self_attn.q_proj.weight"
CHANGES = random_changes(CONFIG, [Q, "model.layers.1.mlp.up_proj.weight"], 3, np.random.default_rng(0))
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def refusal(path: Path) -> str:
    """The message, one line."""
    with pytest.raises(CheckpointError) as refused:
        open_adapter(path, CONFIG)
    assert str(refused.value).isprintable()
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not supported, LORA is"),
        ({"use_dora": True}, "DoRA (use_dora=True): not supported; merge the adapter with PEFT"),
        ({"use_qalora": True}, "QALoRA"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "replicated layers"),
        ({"trainable_token_indices": [1, 2]}, "single trained tokens"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
        ({"alora_invocation_tokens": [5]}, "activated LoRA"),
        ({"init_lora_weights": "pissa"}, "save the adapter with path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the model's own weights"),
        ({"new_idea": {"strength": 3}}, "'new_idea'={'strength': 3} is not known"),
        ({"r": 4}, "r=4 for 'model.layers.0.self_attn.q_proj', whose tensors have the rank 3"),
        ({"r": 0}, "r=0 must be an integer from 1"),
        ({"r": "3"}, "r='3' must be"),
        ({"lora_alpha": None}, "lora_alpha=None must be a finite number"),
        ({"lora_alpha": 1e300}, "is beyond 65504; check"),
        ({"rank_pattern": {"(?=q)q_proj": 3}}, "has '(?=q)q_proj', which is no pattern that can be matched safely"),
        ({"rank_pattern": {"q_proj(": 3}}, "has 'q_proj('"),
        ({"rank_pattern": {"((x{500}){500}){500}": 3}}, "size limit"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern=['q_proj'] must be an object"),
        ({"alpha_pattern": {"q_proj": "16"}}, "lora_alpha='16' must be a finite number"),
    ],
)
def test_settings_of_peft(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    assert words in refusal(write_peft(tmp_path, CHANGES, **settings))


def test_patterns_are_bounded_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 ms instead of 5 s, as nobody wants to wait for it here."""
    monkeypatch.setattr("mistral_portable.adapters.peft_patterns._SECONDS", 0.02)
    slow = {f"{number}" + r"(\w|\d)*" * 40: 3 for number in range(100)}
    message = refusal(write_peft(tmp_path, CHANGES, rank_pattern=slow))
    assert "rank_pattern takes more than 0 s to match; write names of modules" in message


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": "all", "fan_in_fan_out": True, "lora_dropout": 0.1, "megatron_core": "megatron.core"},
        {"layers_to_transform": [0, 1], "layers_pattern": "layers", "target_modules": "all-linear"},
        {"qalora_group_size": 16, "use_dora": False, "corda_config": None, "loftq_config": {}, "new_idea": None},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "auto_mapping": {"unsloth_fixed": True}},
        {"rank_pattern": {"(a+)+$": 7, "(.*a){50}": 7, "((a|a)*)*b": 7}},
    ],
)
def test_settings_without_effect(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = open_adapter(write_peft(tmp_path, CHANGES, **settings), CONFIG)
    assert {change.scale for change in found.low_rank.values()} == {2.0}


ONE = np.ones((3, 64), np.float32)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({f"{PREFIX}.lora_magnitude_vector": ONE}, "DoRA is not supported"),
        ({f"{PREFIX}.lora_B.bias": ONE}, "biases are not supported"),
        ({f"{PREFIX}.base_layer.bias": ONE}, "biases are not supported"),
        ({f"{PREFIX}.weight": ONE}, "is not understood"),
        ({f"{PREFIX}.lora_C.weight": ONE}, "is not understood"),
        ({f"{PREFIX}.lora_A.other.weight": ONE}, "is there twice"),
        ({"base_model.model.score.weight": ONE}, "heads other than lm_head are not supported"),
        ({"base_model.model.model.norm.weight": ONE}, "norms are not supported"),
        (
            {"base_model.model.vision_tower.layers.0.lora_A.weight": ONE},
            "the vision and sound parts of a model are not run",
        ),
        ({"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": ONE}, "single trained tokens"),
        ({"base_model.model.lm_head.original_module.weight": ONE}, "is not understood"),
        ({"base_model.model.model.layers.0.block_sparse_moe.experts.3.w1.lora_A.weight": ONE}, "changes experts"),
        ({"base_model.model.model.layers.0.mlp.experts.lora_A.weight": ONE}, "changes experts"),
        ({"base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": ONE}, "the model has 2 layers"),
        ({"base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight": ONE}, "has no counterpart"),
        ({"base_model.model.model.embed_tokens.lora_A.weight": ONE}, "is not understood"),
        (
            {"base_model.model.lm_head.weight": ONE[:, :63]},
            "has the shape (3, 63), the model's lm_head.weight needs (any, 64)",
        ),
        ({"x": ONE}, "'x' is not understood"),
    ],
)
def test_tensors_of_peft(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    write_peft(tmp_path, {})
    down, up = CHANGES[Q]
    pair = {f"{PREFIX}.lora_A.weight": down, f"{PREFIX}.lora_B.weight": up}
    write_safetensors(tmp_path / "adapter_model.safetensors", {**pair, **tensors})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 3}))
    message = refusal(tmp_path)
    assert words in message
    assert next(iter(tensors)) in message


@pytest.mark.parametrize(
    ("down", "up", "words"),
    [
        ((3, 63), (64, 3), "(3, 63), the model's model.layers.0.self_attn.q_proj.weight needs (any, 64)"),
        ((3, 64), (65, 3), "lora_B.weight' has the shape (65, 3)"),
        ((3, 64), (64, 4), "differ"),
        ((0, 64), (64, 0), "has the shape (0, 64)"),
        ((3, 64, 1), (64, 3), "has the shape (3, 64, 1)"),
    ],
)
def test_shapes_of_another_model(tmp_path: Path, down: tuple[int, ...], up: tuple[int, ...], words: str) -> None:
    changes = {Q: (np.ones(down, np.float32), np.ones(up, np.float32))}
    assert words in refusal(write_peft(tmp_path, changes, r=3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_that_are_not_finite(tmp_path: Path, value: float, dtype: str) -> None:
    down, up = CHANGES[Q]
    up = up.copy()
    up[-1, -1] = value
    message = refusal(write_peft(tmp_path, {Q: (down, up)}, dtype=dtype))
    assert f"'{PREFIX}.lora_B.weight' has values that are not finite" in message


def test_float64_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    write_peft(tmp_path, CHANGES)
    down, up = CHANGES[Q]
    pair: dict[str, Any] = {f"{PREFIX}.lora_A.weight": down.astype(np.float64), f"{PREFIX}.lora_B.weight": up}
    save_file(pair, tmp_path / "adapter_model.safetensors")
    assert "is float64; save the adapter as one of bfloat16, float16, float32" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type='dora' is not supported, 'lora' is; run mlx_lm.fuse on it"),
        ({"fine_tune_type": "full"}, "fine_tune_type='full'"),
        ({"lora_parameters": {"rank": 3}}, "has no scale, which mlx-lm needs, too"),
        ({"lora_parameters": None}, "lora_parameters=None has no scale"),
        ({"lora_parameters": {"scale": "20"}}, "lora_parameters.scale='20' must be a finite number"),
        ({"lora_parameters": {"scale": 20, "rank": 8}}, "lora_parameters.rank=8, but"),
    ],
)
def test_settings_of_mlx(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    assert words in refusal(write_mlx(tmp_path, CHANGES, **settings))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.0.self_attn.q_proj.m", "DoRA is not supported"),
        ("model.layers.0.self_attn.q_proj.weight", "is not understood"),
        ("model.layers.0.block_sparse_moe.switch_mlp.up_proj.lora_a", "changes experts"),
    ],
)
def test_tensors_of_mlx(tmp_path: Path, name: str, words: str) -> None:
    write_mlx(tmp_path, CHANGES)
    write_safetensors(tmp_path / "adapters.safetensors", {name: ONE})
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"adapter.type": "control_vector"}, "adapter.type='control_vector': lora can be read"),
        ({"general.type": "model"}, "general.type='model': adapter can be read"),
    ],
)
def test_settings_of_gguf(tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    assert words in refusal(write_gguf(tmp_path / "a.gguf", CONFIG, CHANGES, 1.0, metadata=metadata))


def test_activated_lora_in_gguf(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_array("adapter.alora.invocation_tokens", [1, 2])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "activated LoRA" in refusal(tmp_path / "a.gguf")


@pytest.mark.parametrize("name", ["output_norm.weight", "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight.lora_a"])
def test_tensors_of_gguf(tmp_path: Path, name: str) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_tensor(name, np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert repr(name) in refusal(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ('{"lora": 2}', "lora=2 is not an object"),
        ('{"lora": {"scaling": "2"}}', "lora.scaling='2' must be a finite number"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_settings_of_mistral_finetune(tmp_path: Path, params: str, words: str) -> None:
    write_raw(tmp_path, CONFIG, CHANGES)
    (tmp_path / "params.json").write_text(params)
    assert words in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("output.lora_A.weight", "is not understood"),
        ("tok_embeddings.lora_B.weight", "is not understood"),
        ("norm.weight", "is not understood"),
        ("layers.0.feed_forward.experts.1.w2.lora_A.weight", "changes experts"),
    ],
)
def test_tensors_of_mistral_finetune(tmp_path: Path, name: str, words: str) -> None:
    write_safetensors(tmp_path / "lora.safetensors", {name: ONE})
    assert f"{name!r} {words}" in refusal(tmp_path)


def _empty(folder: Path) -> Path:
    return folder


def _missing(folder: Path) -> Path:
    return folder / "none"


def _text(folder: Path) -> Path:
    (folder / "notes.txt").write_text("hello")
    return folder / "notes.txt"


def _settings_alone(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text("{}")
    return folder


def _settings_of_nobody(folder: Path) -> Path:
    write_peft(folder, CHANGES)
    (folder / "adapter_config.json").write_text('{"r": 3, "lora_alpha": 3}')
    return folder


def _weights_alone(folder: Path) -> Path:
    write_safetensors(folder / "adapter_model.safetensors", {"x": ONE})
    return folder


def _no_tensors(folder: Path) -> Path:
    return write_peft(folder, {})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_missing, "no such file or folder; adapters of the hub must be downloaded first"),
        (_empty, "holds no adapter; an adapter is a folder of PEFT's"),
        (_text, "an adapter is a folder of PEFT's"),
        (_settings_alone, "has adapter_config.json, and no weights beside it"),
        (_settings_of_nobody, "has neither PEFT's peft_type nor mlx-lm's lora_parameters"),
        (_weights_alone, "adapter_model.safetensors needs the adapter_config.json that was saved with it"),
        (_no_tensors, "holds no LoRA tensors"),
    ],
)
def test_paths_that_are_no_adapters(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    assert words in refusal(make(tmp_path))


def test_tables_of_a_shape_of_their_own(tmp_path: Path) -> None:
    """A resized table sets the shape of what else changes it."""
    more = small_config(vocab_size=100)
    changes = random_changes(more, [TABLE, HEAD], 2, np.random.default_rng(0))
    tables = {f"{name.removesuffix('.weight')}.base_layer.weight": np.ones((100, 64), "f4") for name in (TABLE, HEAD)}
    assert "has the shape (2, 100), the model's" in refusal(write_peft(tmp_path / "a", {TABLE: changes[TABLE]}))
    adapter = open_adapter(write_peft(tmp_path / "b", changes, whole=tables), CONFIG)
    assert {name: tensor.shape for name, tensor in adapter.whole.items()} == {TABLE: (100, 64), HEAD: (100, 64)}
    assert adapter.low_rank.keys() == {TABLE, HEAD}


def test_every_linear_layer_is_read(tmp_path: Path) -> None:
    changes = random_changes(CONFIG, linears(CONFIG), 1, np.random.default_rng(0))
    assert open_adapter(write_peft(tmp_path, changes), CONFIG).low_rank.keys() == set(linears(CONFIG))
