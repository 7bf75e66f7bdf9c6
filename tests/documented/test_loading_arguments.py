"""Arguments of from_pretrained and calls: taken where they ask for nothing, passed on, or refused with the reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import VALUES, pair
from hypothesis import given
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable import transformers as ours
from mistral_portable.errors import CheckpointError

IDS = np.arange(1, 13).reshape(2, 6)
NOTHING: dict[str, Any] = {
    "low_cpu_mem_usage": True,
    "use_safetensors": True,
    "trust_remote_code": False,
    "resume_download": True,
    "offload_folder": "x",
    "proxies": {},
    "variant": None,
    "output_loading_info": False,
    "ignore_mismatched_sizes": False,
    "max_memory": None,
    "token": None,
    "force_download": False,
    "local_files_only": True,
    "subfolder": "",
    "load_in_4bit": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose part "inner/part" is the embedded model, and which is none itself."""
    made: Path = tmp_path_factory.mktemp("made")
    mp.convert("tiny", made / "inner" / "part", to="hf")
    return made


def test_what_asks_for_nothing_is_taken() -> None:
    model = ours.AutoModelForCausalLM.from_pretrained("tiny", backend="reference", **NOTHING)
    config = ours.MistralConfig.from_pretrained("tiny", trust_remote_code=False, low_cpu_mem_usage=True)
    assert config.to_dict() == model.config.to_dict()
    tokenizer = ours.AutoTokenizer.from_pretrained("tiny", use_fast=True, legacy=False, trust_remote_code=False)
    assert tokenizer.encode("Hello") == [1, 867]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes=True is not supported: weights of other shapes"),
        ({"from_tf": True}, "from_tf=True is not supported: h5 files are not read"),
        ({"proxies": {"https": "x"}}, "proxies=.* is not supported: set HTTPS_PROXY"),
        ({"max_memory": {0: "1GB"}}, "max_memory=.* is not supported: a model is on one device"),
        ({"variant": "fp16"}, "variant='fp16' is not supported: pass revision=, or the path of the file"),
        ({"tp_plan": "auto"}, r"tp_plan='auto' is not supported: mistral_portable.load\(tensor_parallel=...\)"),
        ({"device_map": {"a": 0, "b": "cpu"}}, "pass 'auto' or one device; .*tensor_parallel"),
        (
            {"load_in_4bit": True, "quantization_config": {}},
            "load_in_4bit and load_in_8bit are fields of quantization_",
        ),
    ],
)
def test_what_is_refused_says_why(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours.AutoModelForCausalLM.from_pretrained("tiny", backend="reference", **argument)
    assert "\n" not in str(caught.value)


def test_a_part_of_a_folder(folder: Path) -> None:
    wanted = ours.AutoModelForCausalLM.from_pretrained("tiny", backend="reference")
    model = ours.AutoModelForCausalLM.from_pretrained(folder, subfolder="inner/part", backend="reference")
    np.testing.assert_array_equal(model(IDS).logits, wanted(IDS).logits)
    assert ours.MistralConfig.from_pretrained(folder, subfolder="inner/part").to_dict() == model.config.to_dict()
    assert ours.AutoTokenizer.from_pretrained(folder, subfolder="inner/part").encode("Hello") == [1, 867]
    with pytest.raises(CheckpointError, match="other"):
        ours.AutoModelForCausalLM.from_pretrained(folder, subfolder="other")


def test_what_the_hub_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """token, cache_dir and the others reach the download of weights, configs and tokenizers."""
    asked: list[dict[str, Any]] = []

    def download(repository: str, **arguments: Any) -> str:
        assert repository == "owner/name"
        asked.append(arguments)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    call: dict[str, Any] = {"token": "secret", "cache_dir": "/c", "local_files_only": True, "revision": "v1"}
    for open_one in (
        lambda **more: ours.AutoModelForCausalLM.from_pretrained("owner/name", backend="reference", **more),
        lambda **more: ours.MistralConfig.from_pretrained("owner/name", **more),
        lambda **more: ours.AutoTokenizer.from_pretrained("owner/name", **more),
    ):
        asked.clear()
        open_one(subfolder="inner/part", **call)
        assert asked
        for one in asked:
            assert {name: one[name] for name in call} == call
            assert all(pattern.startswith("inner/part/") for pattern in one["allow_patterns"])
    asked.clear()
    ours.AutoModelForCausalLM.from_pretrained(
        "owner/name", backend="reference", subfolder="inner/part", use_auth_token="older"
    )
    assert asked[0]["token"] == "older"


@pytest.mark.parametrize(
    "device_map", [{"": "cpu"}, "cpu", torch.device("cpu"), {"": torch.device("cpu")}, {"a": "cpu", "b": "cpu"}]
)
def test_one_device_has_many_spellings(device_map: Any) -> None:
    for backend in ("reference", "torch"):
        model = ours.AutoModelForCausalLM.from_pretrained("tiny", backend=backend, device_map=device_map)
        assert model.device == "cpu"


def test_calls_take_what_asks_for_nothing() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    plain = mine(IDS).logits
    np.testing.assert_array_equal(mine(IDS, token_type_ids=None, output_router_logits=False).logits, plain)
    with pytest.raises(ValueError, match=r"token_type_ids=.* is not supported: the model has one kind of tokens"):
        mine(IDS, token_type_ids=IDS)
    with pytest.raises(TypeError, match="frob"):
        mine(IDS, frob=1)


def test_generate_takes_what_asks_for_nothing() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    nothing = {
        "num_beams": 1, "early_stopping": False, "output_scores": False, "use_cache": True, "bad_words_ids": [],
        "suppress_tokens": [], "constraints": [], "force_words_ids": None, "synced_gpus": False, "penalty_alpha": 0,
        "num_beam_groups": 1, "diversity_penalty": 0.0, "trust_remote_code": False, "custom_generate": None,
        "cache_implementation": "static", "prefill_chunk_size": 4, "stopping_criteria": [], "logits_processor": [],
        "streamer": None, "stop_strings": None, "assistant_model": None, "sequence_bias": {},
        "watermarking_config": None, "use_model_defaults": True,
        "token_type_ids": None, "renormalize_logits": False, "guidance_scale": 1,
        "remove_invalid_values": False, "min_length": 0, "length_penalty": 1.0, "frob": None,
    }  # fmt: skip
    wanted = mine.generate(IDS, max_new_tokens=5)
    np.testing.assert_array_equal(mine.generate(IDS, max_new_tokens=5, **nothing), wanted)
    for name, value in nothing.items():
        np.testing.assert_array_equal(mine.generate(IDS, max_new_tokens=5, **{name: value}), wanted)


FIELDS: dict[str, Any] = {
    "max_new_tokens": st.integers(1, 9),
    "temperature": st.floats(0.1, 2),
    "do_sample": st.booleans(),
    "top_k": st.none() | st.integers(1, 9),
    "bad_words_ids": st.just([[1], [2, 3]]),
    "eos_token_id": st.just([1, 2]),
    "mine": st.text(max_size=3),
}


@given(first=st.fixed_dictionaries({}, optional=FIELDS), second=st.fixed_dictionaries({}, optional=FIELDS))
def test_configs_are_made_and_changed_as_in_transformers(first: dict[str, Any], second: dict[str, Any]) -> None:
    mine, theirs = ours.GenerationConfig(**first), transformers.GenerationConfig(**first)
    for changed, options in ((second, {}), (first, {"defaults_only": True}), (second, {"allow_custom_entries": True})):
        assert mine.update(**options, **changed) == theirs.update(**options, **changed)
        assert shown(mine) == shown(theirs)
    made, other = (
        ours.GenerationConfig.from_dict(first, **second),
        transformers.GenerationConfig.from_dict(first, **second),
    )
    assert shown(made) == shown(other)
    assert (made == ours.GenerationConfig(**first)) == (other == transformers.GenerationConfig(**first))


def shown(config: Any) -> dict[str, Any]:
    return {
        name: value for name, value in config.to_dict().items() if name != "transformers_version" and value is not None
    }


def test_configs_are_exchanged_with_transformers(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"max_new_tokens": 9, "do_sample": True, "top_p": 0.9, "bad_words_ids": [[1, 2]]}
    transformers.GenerationConfig(**fields).save_pretrained(tmp_path / "theirs")
    ours.GenerationConfig(**fields).save_pretrained(tmp_path / "mine", "other.json")
    read = ours.GenerationConfig.from_pretrained(tmp_path / "theirs")
    assert read == ours.GenerationConfig(**fields)
    assert shown(transformers.GenerationConfig.from_pretrained(tmp_path / "mine", "other.json")) == fields
    changed, unused = ours.GenerationConfig.from_pretrained(
        tmp_path / "mine", "other.json", top_p=0.5, return_unused_kwargs=True
    )
    assert (changed.top_p, unused) == (0.5, {})
    assert json.loads(read.to_json_string())["top_p"] == 0.9
    assert ours.GenerationConfig.from_pretrained(tmp_path / "theirs", subfolder="") == read
    with pytest.raises(CheckpointError, match="no such file"):
        ours.GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(AttributeError, match="GenerationConfig has no 'frob'"):
        _ = read.frob


@given(
    model=st.fixed_dictionaries({}, optional=FIELDS),
    given_=st.fixed_dictionaries({}, optional=FIELDS),
    call=st.fixed_dictionaries({}, optional=FIELDS),
)
def test_the_call_comes_before_its_config_and_that_before_the_models(
    model: dict[str, Any], given_: dict[str, Any], call: dict[str, Any]
) -> None:
    made = ours.generation_config.merged(call, ours.GenerationConfig(**given_), ours.GenerationConfig(**model))
    for name in FIELDS:
        sources = [source for source in (call,) if name in source]
        sources += [source for source in (given_, model) if source.get(name) is not None]
        wanted = sources[0][name] if sources else ours.generation_config.DEFAULTS.get(name)
        assert getattr(made, name, None) == wanted


def test_a_config_of_a_call_and_of_the_model() -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES, 0)
    plain = mine.generate(IDS, max_new_tokens=4, repetition_penalty=2.0)
    for config in (ours, transformers):
        made = config.GenerationConfig(max_new_tokens=9, repetition_penalty=2.0)
        np.testing.assert_array_equal(mine.generate(IDS, generation_config=made, max_new_tokens=4), plain)
    mine.generation_config.repetition_penalty = 2.0
    mine.generation_config.update(max_new_tokens=4)
    np.testing.assert_array_equal(mine.generate(IDS), plain)
    assert mine.generation_config.eos_token_id == mine.config.eos_token_id == theirs.generation_config.eos_token_id
    for name in ("generation_config", "model.generation_config"):
        if name == "model.generation_config":
            mine.generation_config = {"max_new_tokens": 3}
        with pytest.raises(ValueError, match=f"{name} is a dict: pass a GenerationConfig"):
            mine.generate(IDS, **({"generation_config": {}} if name == "generation_config" else {}))


def test_a_changed_config_is_saved_and_an_implied_one_is_not(tmp_path: Path) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    mine.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "generation_config.json").exists()
    mine.generation_config.max_new_tokens = 3
    mine.save_pretrained(tmp_path / "changed")
    again = ours.MistralForCausalLM.from_pretrained(tmp_path / "changed", backend="reference")
    assert again.generation_config.max_new_tokens == 3
    assert again.generate(IDS).shape == (2, 9)
    shutil.rmtree(tmp_path / "changed")
