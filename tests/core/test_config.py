"""MistralConfig: the documented fields, both file formats, exact round trips, and one-line refusals."""

import json
import math
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    MistralConfig,
    QueryScale,
    RopeScaling,
    Yarn,
)
from mistral_portable.errors import ConfigError
from mistral_portable.graph import Rotation
from mistral_portable.testing.strategies import configs, rope_scalings

DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_cache": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "attention_dropout": 0.0,
    "rope_scaling": None,
    "query_scale": None,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
}

RAW_7B_V01 = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "sliding_window": 4096,
    "vocab_size": 32000,
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAN, INF, HUGE = math.nan, math.inf, 10**400
STRETCHED = {"factor": 2.0, "original_max_position_embeddings": 64}
OBJECTS = ("4", [4], {"a": 4})
NOT_A_COUNT = (NAN, INF, -1, -HUGE, HUGE, 2.5, True, *OBJECTS)
NOT_A_SIZE = (0, False, *NOT_A_COUNT)
NOT_POSITIVE = (NAN, INF, -INF, -1.0, 0.0, HUGE, True, None, *OBJECTS)
NOT_A_TOKEN = (NAN, INF, -2, HUGE, 2.5, True, "4", {"a": 4})
NOT_A_BOOL = (NAN, 0, 1, 2.5, None, *OBJECTS)
BAD: dict[str, tuple[Any, ...]] = {
    "vocab_size": (None, *NOT_A_SIZE),
    "hidden_size": (None, *NOT_A_SIZE),
    "intermediate_size": (None, *NOT_A_SIZE),
    "num_hidden_layers": (None, 10_001, *NOT_A_SIZE),
    "num_attention_heads": (None, *NOT_A_SIZE),
    "num_key_value_heads": (3, 64, *NOT_A_SIZE),
    "head_dim": (1, 3, False, *NOT_A_COUNT),
    "hidden_act": (NAN, 1, True, None, "gelu", ["silu"], {}),
    "max_position_embeddings": (None, *NOT_A_SIZE),
    "initializer_range": (NAN, INF, -0.1, HUGE, True, None, *OBJECTS),
    "rms_norm_eps": NOT_POSITIVE,
    "use_cache": NOT_A_BOOL,
    "pad_token_id": ([4], *NOT_A_TOKEN),
    "bos_token_id": ([4], *NOT_A_TOKEN),
    "eos_token_id": ([2, True], [[2]], *NOT_A_TOKEN),
    "tie_word_embeddings": NOT_A_BOOL,
    "rope_theta": NOT_POSITIVE,
    "sliding_window": ([], [0], [[4]], [4, "4"], [4] * 33, *(bad for bad in NOT_A_SIZE if bad != [4])),
    "attention_dropout": (NAN, INF, -0.1, HUGE, True, None, *OBJECTS),
    "rope_parameters": (NAN, 1, True, "linear", [4], {"rope_type": "yarn"}, {"rope_type": [1]}),
    "rope_scaling": (0, False, "", {"type": "linear"}),
    "num_local_experts": (None, 513, *NOT_A_COUNT),
    "num_experts_per_tok": (None, 1, *NOT_A_COUNT),
    "layer_types": (1, "full_attention", ["full_attention"], [[]] * 32, [{}] * 32, ["chunked_attention"] * 32),
}


def test_every_documented_field_and_default() -> None:
    assert {f.name: getattr(MistralConfig(), f.name) for f in fields(MistralConfig)} == DEFAULTS | {"extra": {}}
    assert MistralConfig.from_dict({}) == MistralConfig()


@pytest.mark.parametrize(
    "data",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 5e5, "rope_parameters": None, "rope_scaling": None},
        {"rope_scaling": {"rope_theta": 5e5, "type": "default"}},
    ],
)
def test_rope_theta_is_read_in_its_old_and_new_place(data: dict[str, Any]) -> None:
    config = MistralConfig.from_dict(data)
    assert config.rope_theta == 5e5
    assert config.extra == {}


def test_null_head_sizes_mean_what_they_mean_in_transformers() -> None:
    config = MistralConfig.from_dict(
        {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": None, "head_dim": None}
    )
    assert (config.head_dim, config.num_key_value_heads) == (8, 6)


def test_head_dim_none_is_derived() -> None:
    assert MistralConfig(head_dim=None) == MistralConfig(head_dim=128)  # type: ignore[arg-type]  # as in transformers


@pytest.mark.parametrize(
    "rope",
    [
        {"partial_rotary_factor": 0.5},
        {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
        {"rope_type": "default", "factor": 8.0},
    ],
)
def test_rope_settings_that_would_be_ignored_are_refused(rope: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"rope_parameters: .* is not supported"):
        MistralConfig.from_dict({"rope_parameters": rope})
    neutral = {"rope_theta": 5e5, "rope_type": "default", "partial_rotary_factor": 1.0}
    assert MistralConfig.from_dict({"rope_parameters": neutral}).rope_theta == 5e5


def test_layer_types_and_window_patterns_give_a_window_per_layer() -> None:
    sliding, full = "sliding_attention", "full_attention"
    data = {"num_hidden_layers": 3, "sliding_window": 8}
    assert MistralConfig.from_dict(data | {"layer_types": [sliding, full, sliding]}).layer_windows == (8, None, 8)
    assert MistralConfig.from_dict(data | {"layer_types": [full] * 3}).sliding_window is None
    assert MistralConfig.from_dict(data | {"layer_types": [sliding] * 3}).sliding_window == 8
    assert MistralConfig.from_dict(data | {"sliding_window": [None, 4]}).layer_windows == (None, 4, None)
    with pytest.raises(ConfigError, match="sliding_window"):
        MistralConfig.from_dict(data | {"sliding_window": [4, 8], "layer_types": [sliding, full, sliding]})


def test_with_window_changes_the_window_alone() -> None:
    config = MistralConfig(num_hidden_layers=2).with_window((None, 4))
    assert config.layer_windows == (None, 4)
    assert replace(config, sliding_window=4096) == MistralConfig(num_hidden_layers=2)


def test_raw_params_of_7b_v01() -> None:
    assert MistralConfig.from_params(RAW_7B_V01) == MistralConfig(rms_norm_eps=1e-5)
    without = {name: value for name, value in RAW_7B_V01.items() if name not in ("n_kv_heads", "sliding_window")}
    config = MistralConfig.from_params(without)
    assert (config.num_key_value_heads, config.sliding_window) == (32, None)


@pytest.mark.parametrize("name", ["sliding_window", "_sliding_window"])
def test_raw_window_may_be_a_list(name: str) -> None:
    data = {key: value for key, value in RAW_7B_V01.items() if key != "sliding_window"} | {"n_layers": 4}
    assert MistralConfig.from_params(data | {name: 512}).sliding_window == 512
    assert MistralConfig.from_params(data | {name: [None, 512]}).layer_windows == (None, 512, None, 512)


def test_raw_params_of_later_models() -> None:
    yarn = {"factor": 16, "original_max_position_embeddings": 64, "beta": 32, "alpha": 1, "apply_scale": False}
    scaling = {"beta": 0.1, "original_max_position_embeddings": 32}
    config = MistralConfig.from_params(RAW_7B_V01 | {"yarn": yarn, "llama_4_scaling": scaling})
    assert config.yarn == Yarn(16, 64, attention_factor=1.0)
    assert config.query_scale == QueryScale(0.1, 32)
    config = MistralConfig.from_params(RAW_7B_V01 | {"yarn": yarn | {"apply_scale": True, "beta": 4}})
    assert config.yarn == Yarn(16, 64, beta_fast=4, attention_factor=1 + 0.1 * math.log(16))
    config = MistralConfig.from_params(RAW_7B_V01 | {"moe": {"num_experts": 8, "num_experts_per_tok": 2}})
    assert (config.num_local_experts, config.num_experts_per_tok) == (8, 2)


@pytest.mark.parametrize(
    "more",
    [
        {"moe": {"num_experts": 8}},
        {"moe": {"num_experts": 2, "num_experts_per_tok": 3}},
        {"moe": {"num_experts": 2, "num_experts_per_tok": 1, "first_k_dense_replace": 3}},
        {"moe": [8]},
        {"yarn": {"factor": 16}},
        {"yarn": {"factor": 0.5, "original_max_position_embeddings": 64}},
        {"yarn": {"factor": 16, "original_max_position_embeddings": 64, "gamma": 1}},
        {"yarn": {"factor": 16, "original_max_position_embeddings": 64, "beta": 1, "alpha": 2}},
        {"yarn": {"factor": 16, "original_max_position_embeddings": 64, "apply_scale": 1}},
        {"yarn": STRETCHED, "rope_scaling": {"rope_type": "yarn", **STRETCHED}},
        {"llama_4_scaling": {"beta": 0.1}},
        {"llama_4_scaling": {"beta": -0.1, "original_max_position_embeddings": 64}},
    ],
)
def test_raw_parameters_that_would_be_ignored_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        MistralConfig.from_params(RAW_7B_V01 | more)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"q_lora_rank": 1536, "moe": {"num_experts": 128}}, r"q_lora_rank=1536: latent attention \(MLA\)"),
        ({"kv_lora_rank": 512}, r"kv_lora_rank=512: latent attention \(MLA\)"),
        ({"model_type": "mamba"}, "model_type='mamba' is not supported"),
    ],
)
def test_raw_models_of_another_architecture_are_named(more: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MistralConfig.from_params(RAW_7B_V01 | more)


YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (YARN, Yarn(16, 64)),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}, Yarn(16, 64, attention_factor=1.0)),
        (YARN | {"mscale": 1.0, "mscale_all_dim": 0.0}, Yarn(16, 64)),
        (YARN | {"attention_factor": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}, Yarn(16, 64, attention_factor=0.5)),
        (YARN | {"beta_fast": 4, "beta_slow": None, "truncate": False}, Yarn(16, 64, beta_fast=4, truncate=False)),
        ({"rope_type": "yarn", "factor": 16.0}, Yarn(16, 256)),
    ],
)
def test_yarn_of_transformers(rope: dict[str, Any], expected: Yarn) -> None:
    for name in ("rope_parameters", "rope_scaling"):
        config = MistralConfig.from_dict({name: rope, "max_position_embeddings": 256})
        assert (config.yarn, config.query_scale) == (expected, None)
    scaled = MistralConfig.from_dict({"rope_parameters": YARN | {"llama_4_scaling_beta": 0.1}})
    assert scaled.query_scale == QueryScale(0.1, 64)


def test_yarn_has_the_frequencies_of_its_docstring() -> None:
    frequencies = Yarn(16, 64).frequencies(8, 1e4)
    assert frequencies == pytest.approx((1, 0.1 * 17 / 32, 0.01 / 16, 0.001 / 16))
    assert Yarn(1, 64).frequencies(8, 1e4) == pytest.approx((1, 0.1, 0.01, 0.001))


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "linear", "factor": 4}, LinearScaling(4.0)),
        ({"type": "dynamic", "factor": 2.0}, DynamicScaling(2.0)),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            Llama3Scaling(8.0, 256, 1.0, 4.0),
        ),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2] * 4, "attention_factor": 1.5},
            LongRope((1.0,) * 4, (2.0,) * 4, 256, 1.5),
        ),
    ],
)
def test_other_scalings_of_transformers(rope: dict[str, Any], expected: RopeScaling) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}
    for name in ("rope_parameters", "rope_scaling"):
        assert MistralConfig.from_dict({name: rope, **sizes}).rope_scaling == expected
    # An original length beside the object comes first, as in transformers.
    own = {"original_max_position_embeddings": 128}
    found = MistralConfig.from_dict(
        {"rope_parameters": rope | {"original_max_position_embeddings": 64}, **own, **sizes}
    )
    assert found.rope_scaling is not None
    length = found.rope_scaling.original_max_position_embeddings
    assert length == (None if rope.get("rope_type", "dynamic") in ("linear", "dynamic") else 128)


def test_scalings_have_the_frequencies_of_their_docstrings() -> None:
    assert LinearScaling(4).frequencies(4, 1e4) == (0.25, 0.0025)
    assert DynamicScaling(4).frequencies(4, 1e4) == (1.0, 0.01)
    llama = Llama3Scaling(8, 64, 1, 4).frequencies(8, 1e4)
    assert llama == pytest.approx((1, 0.013042, 0.00125, 0.000125), rel=1e-4)


def test_longrope_has_the_factors_of_its_model() -> None:
    rope = LongRope((1.0, 1.0), (2.0, 4.0), 64, 1.0)
    sizes: Any = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "rope_scaling": rope}
    short, long = (MistralConfig(max_position_embeddings=length, **sizes).rope_scaling for length in (64, 65))
    assert short is not None
    assert long is not None
    assert (short.frequencies(4, 1e4), long.frequencies(4, 1e4)) == ((1.0, 0.01), (0.5, 0.0025))


@pytest.mark.parametrize(
    ("rope", "why"),
    [
        ({"rope_type": "proportional", "factor": 2.0}, "rope_type='proportional' is not supported: default, linear"),
        ({"rope_type": "linear"}, "factor=None must be a finite number"),
        ({"rope_type": "linear", "factor": 0.5}, "factor=0.5 must be at least 1"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 2}, "'beta_fast'=2 is not supported"),
        ({"rope_type": "dynamic", "factor": 1e300}, r"factor=1e\+300 must be from"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor=None"),
        (
            {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0},
            "high_freq_factor=2.0 must be greater than low_freq_factor=2.0",
        ),
        ({"rope_type": "longrope", "short_factor": [1.0] * 64}, "long_factor=None must be a list"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "1 entries, one for each of the 64"),
        (
            {"rope_type": "longrope", "short_factor": [0.0] * 64, "long_factor": [1.0] * 64},
            "short_factor=0.0 must be positive",
        ),
        (
            {"rope_type": "longrope", "short_factor": [1] * 64, "long_factor": [1] * 64, "attention_factor": -1},
            "attention_factor=-1.0 must be positive",
        ),
    ],
)
def test_impossible_scalings(rope: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as raised:
        MistralConfig.from_dict({"rope_parameters": rope, "max_position_embeddings": 256})
    assert "\n" not in str(raised.value)


@given(config=configs(), data=st.data())
def test_scalings_round_trip(config: MistralConfig, data: st.DataObject) -> None:
    scaling = data.draw(rope_scalings(original=data.draw(st.sampled_from([8, 4096])), pairs=config.head_dim // 2))
    config = replace(config, rope_scaling=scaling, query_scale=None)
    assert MistralConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_queries_grow_as_ministral_3s_do() -> None:
    rotation = Rotation((0.0,), query_scale=QueryScale(0.1, 16384))
    cosines = rotation.table(np.array([0, 16383, 16384, 131072]), np.float64)[:, 0, 0]
    assert cosines == pytest.approx([1, 1, 1 + 0.1 * math.log(2), 1 + 0.1 * math.log(9)])


def test_two_original_lengths_have_no_keys_in_transformers() -> None:
    config = MistralConfig(rope_scaling=Yarn(16, 64), query_scale=QueryScale(0.1, 32))
    with pytest.raises(ConfigError, match=r"different original lengths, \[32, 64\]"):
        config.to_dict()


def test_defaults_of_other_classes_of_transformers() -> None:
    mixtral = MistralConfig.from_dict({"model_type": "mixtral"})
    assert (mixtral.num_local_experts, mixtral.num_experts_per_tok, mixtral.sliding_window) == (8, 2, None)
    ministral = MistralConfig.from_dict({"model_type": "ministral3"})
    assert ministral.yarn == Yarn(16, 16384, attention_factor=1.0)
    assert ministral.query_scale == QueryScale(0.1, 16384)


def test_multimodal_configs_give_the_language_model() -> None:
    text = {"model_type": "ministral3", "hidden_size": 64, "head_dim": 8}
    config = MistralConfig.from_dict(
        {"model_type": "mistral3", "text_config": text, "vision_config": {"hidden_size": 8}}
    )
    assert (config.hidden_size, config.head_dim, config.extra) == (64, 8, {"model_type": "ministral3"})


def test_eos_token_ids_are_one_a_list_or_none() -> None:
    assert MistralConfig(eos_token_id=None).eos_token_ids == ()
    assert MistralConfig().eos_token_ids == (2,)
    assert MistralConfig.from_dict({"eos_token_id": [2, 7]}).eos_token_ids == (2, 7)


@given(config=configs(), eos=st.one_of(st.none(), st.integers(0, 9), st.lists(st.integers(0, 9)).map(tuple)))
def test_valid_configs_round_trip(config: MistralConfig, eos: Any) -> None:
    config = replace(config, eos_token_id=eos)
    assert MistralConfig.from_dict(config.to_dict()) == config
    assert MistralConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(st.dictionaries(st.text().filter(lambda name: name not in BAD), JSON, max_size=4))
def test_unknown_keys_survive_json(extra: dict[str, Any]) -> None:
    config = MistralConfig.from_dict(json.loads(json.dumps({"hidden_size": 64} | extra)))
    assert config.extra == extra
    assert MistralConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", BAD)
def test_impossible_values_are_refused_by_name(name: str) -> None:
    for value in BAD[name]:
        with pytest.raises(ConfigError, match=name) as caught:
            MistralConfig.from_dict({name: value})
        assert len(str(caught.value).splitlines()) == 1


def test_a_hidden_size_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="hidden_size=100"):
        MistralConfig(hidden_size=100)
    assert MistralConfig(hidden_size=100, head_dim=8).head_dim == 8


HF_KEYS = (*BAD, "extra")
RAW_KEYS = (*RAW_7B_V01, "tied_embeddings", "max_seq_len", "_sliding_window", "moe", "yarn", "rope_theta")


def one_or_many(keys: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of arbitrary JSON; those of one key matter most: no other key is refused before it."""
    return st.dictionaries(st.sampled_from(keys), JSON, max_size=1) | st.dictionaries(st.sampled_from(keys), JSON)


@given(one_or_many(HF_KEYS), one_or_many(RAW_KEYS))
def test_any_json_gives_a_config_or_a_config_error(data: dict[str, Any], raw: dict[str, Any]) -> None:
    for read, values in ((MistralConfig.from_dict, data), (MistralConfig.from_params, raw)):
        with suppress(ConfigError):
            config = read(values)
            assert MistralConfig.from_dict(config.to_dict()) == config


def test_from_file_tells_both_formats_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MistralConfig(rms_norm_eps=1e-5).to_dict()))
    (tmp_path / "params.json").write_text(json.dumps(RAW_7B_V01))
    for name in ("config.json", "params.json"):
        assert MistralConfig.from_file(tmp_path / name) == MistralConfig(rms_norm_eps=1e-5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b'{"hidden_size": -1}',
        b'{"dim": -1}',
        b'{"rms_norm_eps": NaN}',
        b'{"unknown": [NaN, -Infinity]}',
        b'{"hidden_size": ' + b"9" * 5000 + b"}",
        b'{"hidden_size": ' + b"[" * 900 + b"]" * 900 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_bad_files_are_one_line_errors_that_name_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json: ") as caught:
        MistralConfig.from_file(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < len(str(path)) + 300


def test_missing_files_and_folders_are_config_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            MistralConfig.from_file(path)


@pytest.mark.parametrize(
    "values",
    [
        {"head_dim": 10**8},
        {"rope_theta": 5e-324},
        {"rope_theta": 1e300},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **STRETCHED, "beta_fast": 1.7e308}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **STRETCHED, "beta_slow": 5e-324}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **STRETCHED, "beta_fast": 10**5000}},
    ],
)
def test_absurd_numbers_are_refused(values: dict[str, Any]) -> None:
    """Before anything of their size is allocated or computed."""
    with pytest.raises(ConfigError, match=r"head_dim|rope_theta|beta"):
        MistralConfig.from_dict(values)
