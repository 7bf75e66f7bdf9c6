"""Adapters that PEFT saves open; merged weights are those of its `merge_and_unload`, logits its model's."""

import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters.files import write_peft
from adapters.peft_adapters import LINEARS, configs, make, merged_weights, settings
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from weights.files import small_config

import mistral_portable as mp
from mistral_portable.adapters import LowRank, merge, open_adapter
from mistral_portable.adapters.peft_patterns import Patterns
from mistral_portable.config import MistralConfig
from mistral_portable.weights import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

# Each makes a model of transformers and an adapter of PEFT's, and saves both.
FEW = hypothesis_settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
EPSILON = float(np.finfo(np.float32).eps)


def rounding(change: LowRank, weight: Any) -> Any:
    """The most by which two float32 sums of the same change and weight differ, element by element."""
    products = np.abs(change.up.numpy(np.float64)) @ np.abs(change.down.numpy(np.float64))
    return 2 * (change.rank + 3) * EPSILON * (abs(change.scale) * products + np.abs(weight))


@FEW
@given(config=configs(), arguments=settings(), seed=st.integers(0, 2**31), safe=st.booleans())
def test_merged_weights_are_those_of_peft(
    config: MistralConfig, arguments: dict[str, Any], seed: int, safe: bool
) -> None:
    if config.tie_word_embeddings:  # PEFT merges a change of the table into the tied head, too: see the test of logits
        names = [name for name in arguments["target_modules"] if name not in ("embed_tokens", "lm_head")]
        arguments = {**arguments, "target_modules": names, "modules_to_save": None}
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder), config, arguments, seed, safe)
        base = open_checkpoint(made.base)
        adapter = open_adapter(made.adapter, base.config)
        merged, _ = merge(base, [(adapter, 1.0)])
        theirs = merged_weights(made)
        for name, tensor in merged.tensors.items():
            change = adapter.low_rank.get(name)
            allowed: Any = 0.0
            if change is not None:
                allowed = rounding(change.transposed() if "embed" in name else change, theirs[name])
            assert (np.abs(tensor.numpy() - theirs[name]) <= allowed).all(), name
    targets = {name.split(".")[-2] for name in adapter.low_rank}
    assert targets <= set(arguments["target_modules"])
    assert {name.split(".")[-2] for name in adapter.whole} >= set(arguments["modules_to_save"] or ())


@FEW
@given(config=configs(), arguments=settings(), seed=st.integers(0, 2**31), data=st.data())
def test_logits_of_the_merged_model_are_those_of_peft(
    config: MistralConfig, arguments: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=12))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make(Path(folder), config, arguments, seed)
        with torch.no_grad():
            theirs = made.model(torch.tensor([tokens])).logits[0].numpy()
        out = mp.convert(made.base, Path(folder) / "merged", "hf", merge_adapters=[(made.adapter, 1.0)])
        with mp.load(out, backend="reference", dtype="float32") as model:
            ours = model.logits(tokens)
    # Both in float32, which sum in other orders and round the merged weights once more.
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@FEW
@given(config=configs(), arguments=settings(), seed=st.integers(0, 2**31), data=st.data())
def test_logits_with_an_adapter_are_those_of_peft(
    config: MistralConfig, arguments: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    """With the adapter, and without it; how near executors come to the reference is for the conformance ladder."""
    tokens = data.draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=12))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make(Path(folder), config, arguments, seed)
        theirs = made.model.double()
        with torch.no_grad():
            expected = theirs(torch.tensor([tokens])).logits[0].numpy()
            with theirs.disable_adapter():
                plain = theirs(torch.tensor([tokens])).logits[0].numpy()
        with mp.load(made.base, backend="reference", dtype="float64", adapters={"own": made.adapter}) as model:
            for chosen, wanted in (("own", expected), ({}, plain)):
                found = model.logits(tokens, adapter=chosen)
                # transformers rounds cosines to float32.
                assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["target_modules", "modules_to_save"])
def test_tied_weights_stay_tied_where_the_adapter_ties_its_own(tmp_path: Path, tied: bool, kind: str) -> None:
    config = small_config(tie_word_embeddings=True)
    arguments = {"target_modules": ["q_proj"], "ensure_weight_tying": tied}
    arguments[kind] = [*(arguments.get(kind) or []), "embed_tokens"]  # type: ignore[misc]
    made = make(tmp_path, config, arguments, 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        out = mp.convert(made.base, tmp_path / "merged", "hf", merge_adapters=[(made.adapter, 1.0)])
    assert open_checkpoint(out).config.tie_word_embeddings is tied
    assert tied != any("are written apart" in str(warning.message) for warning in said)
    with torch.no_grad():
        theirs = made.model(torch.tensor([[1, 2, 3]])).logits[0].numpy()
    with mp.load(out, backend="reference", dtype="float32") as model:
        assert np.abs(model.logits([1, 2, 3]) - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_names_of_multimodal_models_and_of_adapters(tmp_path: Path) -> None:
    """The same adapter under all spellings of its tensors' names."""
    from safetensors.numpy import load_file, save_file

    config = small_config()
    made = make(tmp_path, config, {"target_modules": LINEARS, "rank_pattern": {"layers.0.mlp.up_proj": 3}}, 0)
    file = made.adapter / "adapter_model.safetensors"
    plain, tensors = open_adapter(made.adapter, config), load_file(file)
    for old, new in (
        ("base_model.model.model.", "base_model.model.model.language_model."),
        ("base_model.model.model.", "base_model.model.language_model.model."),
        ("base_model.model.model.", "base_model.model."),
        ("base_model.model.", ""),
        (".lora_A.weight", ".lora_A.default.weight"),
    ):
        save_file({name.replace(old, new): values for name, values in tensors.items()}, file)
        renamed = open_adapter(made.adapter, config)
        assert renamed.low_rank.keys() == plain.low_rank.keys()
        for name, change in plain.low_rank.items():
            assert renamed.low_rank[name].scale == change.scale
            assert np.array_equal(renamed.low_rank[name].up.numpy(), change.up.numpy())


@pytest.mark.parametrize("spelling", ["", ".modules_to_save", ".modules_to_save.default", ".base_layer"])
def test_names_of_tables_that_were_saved_whole(tmp_path: Path, spelling: str) -> None:
    whole = {f"lm_head{spelling}.weight": np.ones((96, 64), np.float32)}
    (table,) = open_adapter(write_peft(tmp_path, {}, whole=whole), small_config()).whole.items()
    assert table[0] == "lm_head.weight"
    assert np.array_equal(table[1].numpy(), np.ones((96, 64)))


PARTS = st.sampled_from(
    ["q_proj", "layers", "model", "0", "1", ".", r"\.", ".*", r"\d+", "(0|1)", "[qk]", "^", "|", "_proj"]
)


@given(patterns=st.lists(st.lists(PARTS, max_size=5).map("".join), max_size=3, unique=True))
def test_patterns_match_as_in_peft(patterns: list[str]) -> None:
    from peft.utils.other import get_pattern_key

    ours = Patterns(Path("adapter_config.json"), "rank_pattern", {pattern: pattern for pattern in patterns})
    for module in (
        "model.layers.0.self_attn.q_proj",
        "model.layers.11.self_attn.k_proj",
        "model.embed_tokens",
        "lm_head",
    ):
        assert ours.value(module, module) == get_pattern_key(patterns, module)


@pytest.mark.parametrize("rslora", [False, True])
def test_scales(tmp_path: Path, rslora: bool) -> None:
    arguments = {"r": 4, "lora_alpha": 6, "use_rslora": rslora, "target_modules": ["q_proj", "up_proj"]}
    made = make(tmp_path, small_config(), {**arguments, "rank_pattern": {"q_proj": 9}}, 0)
    low_rank = open_adapter(made.adapter, small_config()).low_rank
    found = {(name.split(".")[-2], change.rank, change.scale) for name, change in low_rank.items()}
    assert found == {
        ("q_proj", 9, 6 / (3 if rslora else 9)),
        ("up_proj", 4, 6 / (2 if rslora else 4)),
    }


def test_the_router_of_mixtral(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    config = small_config(num_local_experts=4, num_experts_per_tok=2)
    values = {"A": np.ones((2, 64), np.float32), "B": np.ones((4, 2), np.float32)}
    name = "base_model.model.model.layers.1.block_sparse_moe.gate"
    save_file(
        {f"{name}.lora_{side}.weight": each for side, each in values.items()}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 1}))
    (change,) = open_adapter(tmp_path, config).low_rank.items()
    assert change[0] == "model.layers.1.block_sparse_moe.gate.weight"
    assert math.isclose(change[1].scale, 0.5)
