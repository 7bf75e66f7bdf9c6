"""Checks of transformers' own tests of Mistral that no other test here makes; docs/transformers-tests.md lists them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import HEADS, VALUES, batches, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours
from mistral_portable.errors import CheckpointError
from mistral_portable.weights import DenseTensor

IDS = np.arange(1, 13).reshape(2, 6)


@pytest.mark.parametrize("name", HEADS)
def test_the_same_call_gives_the_same(name: str) -> None:
    mine, _ = pair(name, VALUES, 0)
    for first, second in zip(mine(IDS, use_cache=False).values(), mine(IDS, use_cache=False).values(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=10)
@given(data=st.data(), values=configs(), side=st.sampled_from(["left", "right"]), seed=st.integers(0, 2**31))
def test_a_row_of_a_batch_is_as_if_alone(
    name: str, data: st.DataObject, values: dict[str, Any], side: str, seed: int
) -> None:
    mine, _ = pair(name, values, seed, "float64")
    ids, mask = data.draw(batches(values["vocab_size"], side))
    together = mine(ids, attention_mask=mask, use_cache=False)
    for row in range(len(ids)):
        kept = mask[row] == 1
        alone = mine(ids[row : row + 1, kept], use_cache=False)
        for key in alone:
            of_row = together[key][row] if name == "MistralForSequenceClassification" else together[key][row, kept]
            np.testing.assert_allclose(of_row, alone[key][0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_tuples_have_what_output_objects_have(name: str) -> None:
    mine, theirs = pair(name, VALUES, 0)
    call: dict[str, Any] = {"use_cache": False, "output_hidden_states": True, "output_attentions": True}
    named, plain = mine(IDS, **call), mine(IDS, return_dict=False, **call)
    assert len(plain) == len(named) == len(theirs(torch.tensor(IDS), return_dict=False, **call))
    for one, other in zip(named.values(), plain, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", HEADS)
def test_hidden_states_and_attentions_have_the_documented_shapes(name: str) -> None:
    """The weights of keys beyond the window are 0."""
    window = 3
    mine, _ = pair(name, {**VALUES, "sliding_window": window}, 0)
    output = mine(IDS, output_hidden_states=True, output_attentions=True)
    assert list(output)[-2:] == ["hidden_states", "attentions"]
    assert [states.shape for states in output.hidden_states] == [(2, 6, 12)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 3, 6, 6)] * 2
    distance = np.subtract.outer(np.arange(6), np.arange(6))
    visible = (distance >= 0) & (distance < window)
    for weights in output.attentions:
        assert not weights[..., ~visible].any()
        assert weights[..., visible].all()
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_the_config_says_what_calls_leave_open(name: str) -> None:
    mine, _ = pair(name, VALUES, 0)
    mine.config.output_hidden_states = mine.config.output_attentions = True
    mine.config.use_cache = False
    output = mine(IDS)
    assert {"hidden_states", "attentions"} <= set(output)
    assert "past_key_values" not in output
    assert "hidden_states" not in mine(IDS, output_hidden_states=False)
    mine.config.return_dict = False
    assert isinstance(mine(IDS), tuple)
    assert not isinstance(mine(IDS, return_dict=True), tuple)


@pytest.mark.parametrize(
    ("problem", "count", "labels"),
    [
        ("multi_label_classification", 2, [[1.0, 0.0], [0.0, 0.0]]),
        ("single_label_classification", 1, [0, 0]),
        ("single_label_classification", 3, [2, 0]),
        ("regression", 1, [0.5, -2.0]),
        ("regression", 3, [[0.5, 0.0, 1.0], [-2.0, 1.0, 0.0]]),
    ],
)
def test_problem_types(problem: str, count: int, labels: list[Any]) -> None:
    mine, theirs = pair("MistralForSequenceClassification", {**VALUES, "num_labels": count}, 0)
    mine.config.problem_type = theirs.config.problem_type = problem
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS), labels=torch.tensor(labels)).loss
    np.testing.assert_allclose(mine(IDS, labels=labels).loss, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert mine.config.problem_type == problem


def test_tied_embeddings_are_saved_and_read_both_ways(tmp_path: Path) -> None:
    mine, theirs = pair("MistralForCausalLM", {**VALUES, "tie_word_embeddings": True}, 0)
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(mine(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    read = ours.MistralForCausalLM.from_pretrained(tmp_path / "theirs", backend="reference")
    np.testing.assert_allclose(read(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    read.save_pretrained(tmp_path / "ours")
    loaded: Any = transformers.MistralForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    again, info = loaded
    assert not info["missing_keys"]
    with torch.no_grad():
        np.testing.assert_allclose(again(torch.tensor(IDS)).logits.numpy(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("saved", "opened", "changed", "message"),
    [
        ("MistralModel", "MistralForCausalLM", {}, "lm_head.weight is missing"),
        ("MistralForCausalLM", "MistralForTokenClassification", {}, "score.weight is missing"),
        ("MistralForSequenceClassification", "MistralForSequenceClassification", {"num_labels": 7}, r"needs \(7, 12\)"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    saved: str, opened: str, changed: dict[str, int], message: str, tmp_path: Path
) -> None:
    """transformers draws missing weights, to be trained; nothing is trained here."""
    pair(saved, VALUES, 0)[0].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message) as raised:
        getattr(ours, opened).from_pretrained(tmp_path, backend="reference", **changed)
    assert "\n" not in str(raised.value)


def test_a_head_is_left_aside_by_the_model_without_one(tmp_path: Path) -> None:
    mine, theirs = pair("MistralForTokenClassification", VALUES, 0)
    mine.save_pretrained(tmp_path)
    read = ours.MistralModel.from_pretrained(tmp_path, backend="reference")
    with torch.no_grad():
        wanted = theirs.model(torch.tensor(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(read(IDS).last_hidden_state, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=10)
@given(values=configs(), seed=st.integers(0, 2**31), length=st.integers(1, 12), new=st.integers(1, 12))
def test_generating_with_a_cache_is_reading_all_again(values: dict[str, Any], seed: int, length: int, new: int) -> None:
    mine, _ = pair("MistralForCausalLM", values, seed, "float64")
    ids = np.random.default_rng(seed).integers(1, values["vocab_size"], (2, length))  # 0 would be padding
    found = mine.generate(ids, max_new_tokens=new, eos_token_id=values["vocab_size"])
    for _ in range(new):
        greedy = mine(ids, use_cache=False, logits_to_keep=1).logits[:, -1].argmax(-1)
        ids = np.append(ids, greedy[:, None], axis=1)
    np.testing.assert_array_equal(found, ids)


def test_a_cache_is_added_to_also_where_it_is_not_returned() -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES, 0)
    for model, ids in ((mine, IDS), (theirs, torch.tensor(IDS))):
        past = model(ids).past_key_values
        output = model(ids[:, :2], past_key_values=past, use_cache=False)
        assert list(output) == ["logits"]
        assert past.get_seq_length() == 8


def test_one_prompt_is_continued_in_several_ways() -> None:
    """Copies of a cache do the work of transformers' masks of four axes: several continuations of one prompt."""
    mine, _ = pair("MistralForCausalLM", VALUES, 0, "float64")
    prompt, ways = [1, 2, 3], [[4, 5, 6], [7, 8, 9], [10, 11, 12]]
    past = mine([prompt]).past_key_values
    for way in ways:
        shared = mine([way], past_key_values=copy.deepcopy(past)).logits
        alone = mine([prompt + way]).logits
        np.testing.assert_allclose(shared, alone[:, len(prompt) :], rtol=1e-9, atol=1e-9)


@settings(max_examples=15)
@given(
    factor=st.sampled_from([1.0, 2.0, 8.0]),
    original=st.sampled_from([4, 16, 32]),
    betas=st.sampled_from([{}, {"beta_fast": 4.0, "beta_slow": 1.0}]),
    mscale=st.sampled_from([{}, {"attention_factor": 1.0}, {"mscale": 1.0, "mscale_all_dim": 1.0}]),
    seed=st.integers(0, 2**31),
)
def test_yarn_from_the_config(
    factor: float, original: int, betas: dict[str, float], mscale: dict[str, float], seed: int
) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": factor, **betas, **mscale}
    rope["original_max_position_embeddings"] = original
    values = {key: value for key, value in VALUES.items() if key != "rope_theta"}
    torch.manual_seed(seed)
    theirs: Any = transformers.MistralModel(transformers.MistralConfig(**values, rope_parameters=rope))
    theirs.eval()
    tensors = {
        f"model.{key}": DenseTensor(f"model.{key}", "float32", value.numpy())
        for key, value in theirs.state_dict().items()
    }
    config = ours.MistralConfig(**values, rope_parameters=rope)
    mine = ours.MistralModel(config, backend="reference", tensors=tensors)
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(mine(IDS).last_hidden_state, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ],
)
def test_scalings_from_the_config(rope: dict[str, Any]) -> None:
    """One value in all digits; more of them in `tests/peers/test_rope_scaling.py`."""
    values = {key: value for key, value in VALUES.items() if key != "rope_theta"}
    torch.manual_seed(0)
    theirs: Any = transformers.MistralModel(transformers.MistralConfig(**values, rope_parameters=dict(rope))).eval()
    tensors = {
        f"model.{key}": DenseTensor(f"model.{key}", "float32", value.numpy())
        for key, value in theirs.state_dict().items()
    }
    mine = ours.MistralModel(ours.MistralConfig(**values, rope_parameters=rope), backend="reference", tensors=tensors)
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS)).last_hidden_state.numpy()
    np.testing.assert_allclose(mine(IDS).last_hidden_state, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        (
            {"rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
            "rope_type='proportional' is not supported",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor'=0.5 is not supported"),
    ],
)
def test_what_no_mistral_model_has_is_refused(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours.MistralConfig(**field)


def test_masks_have_two_axes_or_four() -> None:
    mine, _ = pair("MistralModel", VALUES, 0)
    with pytest.raises(ValueError, match=r"attention_mask has the shape \[6\]: pass 2 axes"):
        mine(IDS, attention_mask=np.ones(6))


def test_labels_are_counted_and_named() -> None:
    config = ours.MistralConfig(id2label={0: "no", 1: "yes", 2: "perhaps"})
    assert config.num_labels == 3
    config.num_labels = 5
    assert ours.MistralConfig.from_dict(config.to_dict()).num_labels == 5
