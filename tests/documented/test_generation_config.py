"""generation_config.json: defaults of `generate` that a call overrides, as in transformers."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import VALUES, pair
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_portable as mp
from mistral_portable import transformers as ours

PROMPT = [[1, 2, 3]]
VALUE: dict[str, Any] = {
    "max_new_tokens": st.integers(1, 9),
    "max_length": st.integers(5, 20),
    "eos_token_id": st.integers(0, 29) | st.lists(st.integers(0, 29), min_size=1, max_size=4),
    "pad_token_id": st.integers(0, 29),
    "repetition_penalty": st.sampled_from([0.5, 1.0, 2.0]),
    "do_sample": st.sampled_from([False]),
    "temperature": st.sampled_from([0.5]),
    "_from_model_config": st.just(True),
    "transformers_version": st.just("4.38.0"),
    "use_cache": st.just(True),
}
CALLS = ("max_new_tokens", "max_length", "eos_token_id", "pad_token_id", "repetition_penalty")
files = st.fixed_dictionaries({}, optional=VALUE)
calls = st.fixed_dictionaries({}, optional={name: VALUE[name] for name in CALLS})


@settings(max_examples=60)
@given(stated=files, call=calls)
def test_greedy_tokens(stated: dict[str, Any], call: dict[str, Any]) -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES, 5)
    theirs.generation_config = transformers.GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 0, **stated})
    mine.generation_config = ours.GenerationConfig(**{"eos_token_id": 2, "pad_token_id": 0, **stated})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = theirs.generate(torch.tensor(PROMPT), attention_mask=torch.ones(1, 3, dtype=torch.long), **call)
    found = mine.generate(PROMPT, attention_mask=np.ones((1, 3), int), **call)
    assert found.tolist() == wanted.tolist()


def drawn(stated: dict[str, Any], **call: Any) -> list[int]:
    mine, _ = pair("MistralForCausalLM", VALUES, 5)
    mine.generation_config = ours.GenerationConfig(**stated)
    return list(mine.generate(PROMPT, seed=1, eos_token_id=29, max_new_tokens=20, **call)[0].tolist())


def test_drawn_tokens_are_those_of_the_arguments_of_these_names() -> None:
    rules = {"do_sample": True, "temperature": 3.0, "top_k": 7, "top_p": 0.9, "min_p": 0.01}
    assert drawn(rules) == drawn({}, **rules)
    assert drawn(rules | {"top_k": 3}, top_k=7) == drawn({}, **rules)
    assert drawn(rules, do_sample=False) == drawn({})
    assert drawn({name: value for name, value in rules.items() if name != "do_sample"}) == drawn({})
    several = pair("MistralForCausalLM", VALUES, 5)[0]
    several.generation_config = ours.GenerationConfig(**rules, num_return_sequences=3, max_new_tokens=5)
    assert several.generate(PROMPT).shape[0] == 3


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"num_beam_groups": 4}, "num_beam_groups=4 is not supported: transformers 5 has it as code on the hub"),
        ({"suppress_tokens": 1.5}, "suppress_tokens is float64: pass integers"),
        ({"temperature": "hot", "do_sample": True}, "temperature='hot' must be a number"),
        ({"max_new_tokens": "x"}, "max_new_tokens='x' must be an integer"),
        ({"do_sample": "x"}, "do_sample is a str"),
    ],
)
def test_what_is_not_supported_is_one_line(stated: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 5)
    mine.generation_config = ours.GenerationConfig(**stated)
    with pytest.raises(ValueError, match=message) as caught:
        mine.generate(PROMPT)
    assert "\n" not in str(caught.value)
    changed = {"num_beam_groups": 1, "temperature": 1.0, "max_new_tokens": 3, "do_sample": False}
    if next(iter(stated)) in changed:
        mine.generate(PROMPT, **changed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("made") / "tiny"
    mp.convert("tiny", made, to="hf")
    stated = {"do_sample": True, "temperature": 0.3, "top_p": 0.8, "max_new_tokens": 7, "eos_token_id": [2, 9]}
    (made / "generation_config.json").write_text(json.dumps(stated))
    return made


def test_files_are_read_and_kept(folder: Path, tmp_path: Path) -> None:
    """By from_pretrained and save_pretrained, and by convert to folders."""
    stated = json.loads((folder / "generation_config.json").read_text())
    model = ours.AutoModelForCausalLM.from_pretrained(folder, backend="reference")
    assert model.generation_config == ours.GenerationConfig(**stated)
    model.save_pretrained(tmp_path / "saved")
    mp.convert(folder, tmp_path / "converted", to="hf")
    for made in (tmp_path / "saved", tmp_path / "converted"):
        assert json.loads((made / "generation_config.json").read_text()) == stated
        again = ours.AutoModelForCausalLM.from_pretrained(made, backend="reference")
        assert again.generation_config.to_diff_dict() == stated


def test_the_native_interface_uses_it_if_asked(folder: Path) -> None:
    model = mp.load(folder, backend="reference")
    text = "Once upon a time"
    seed: dict[str, Any] = {"seed": 3}
    asked = model.generate(text, sampling="model", **seed)
    assert asked.tokens == model.generate(text, temperature=0.3, top_p=0.8, top_k=50, max_tokens=7, **seed).tokens
    longer = model.generate(text, sampling="model", max_tokens=9, temperature=0, **seed)
    assert longer.tokens == model.generate(text, temperature=0, max_tokens=9).tokens
    assert model.generate(text, **seed).tokens == mp.load("tiny", backend="reference").generate(text, **seed).tokens
    with pytest.raises(ValueError, match="'model' is the only choice"):
        model.generate(text, sampling="own")
    with pytest.raises(ValueError, match="beside params"):
        model.generate(text, mp.SamplingParams(), sampling="model")
    with pytest.raises(ValueError, match=r"no generation_config.json of the model says how to draw"):
        mp.load("tiny", backend="reference").generate(text, sampling="model")


@pytest.mark.parametrize(
    ("stated", "fields"),
    [
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "temperature": 0.15}, {"temperature": 0.15, "top_k": 50}),
        (
            {"do_sample": False, "temperature": 0.15, "min_p": 0.1},
            {"temperature": 0, "min_p": 0.1},
        ),
        ({"temperature": 0.15}, {"temperature": 0.15}),
        (
            {"do_sample": False, "min_new_tokens": 2, "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [6, 7]]},
            {"temperature": 0, "min_tokens": 2, "no_repeat_ngram_size": 3, "bad_words_ids": [[5], [6, 7]]},
        ),
        (
            {"temperature": 0.5, "min_new_tokens": 0, "no_repeat_ngram_size": 0, "bad_words_ids": None},
            {"temperature": 0.5},
        ),
        ({"max_new_tokens": 5, "max_length": 9, "top_p": None}, {"max_tokens": 5}),
        (
            {"temperature": 0.5, "epsilon_cutoff": 3e-4, "eta_cutoff": 0.0},
            {"temperature": 0.5, "epsilon_cutoff": 3e-4},
        ),
        ({"temperature": 0.5, "epsilon_cutoff": 0.0, "eta_cutoff": 2e-3}, {"temperature": 0.5, "eta_cutoff": 2e-3}),
    ],
)
def test_what_a_file_states(stated: dict[str, Any], fields: dict[str, Any]) -> None:
    assert mp.sampling.stated_sampling(stated) == fields


def test_a_file_that_cannot_be_read_is_told_of(folder: Path, tmp_path: Path) -> None:
    mp.convert(folder, tmp_path / "broken", to="hf")
    (tmp_path / "broken" / "generation_config.json").write_text("[")
    with pytest.warns(UserWarning, match=r"generation_config.json: not JSON .* .*end tokens do not count"):
        assert mp.load(tmp_path / "broken", backend="reference").generation == {}
