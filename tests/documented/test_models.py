"""The documented classes give transformers' outputs on drawn configs and padded batches, float32, within 1e-4."""

import copy
import re
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import HEADS, VALUES, batches, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours
from mistral_portable.errors import BusyError, ClosedError


def close(found: Any, expected: torch.Tensor, mask: np.ndarray | None = None) -> None:
    found, wanted = np.asarray(found), expected.detach().numpy()
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    if mask is not None:  # outputs at padding are arbitrary
        found, wanted = found[mask == 1], wanted[mask == 1]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=15)
@given(data=st.data(), values=configs(), side=st.sampled_from(["left", "right"]), seed=st.integers(0, 2**31))
def test_a_padded_batch(name: str, data: st.DataObject, values: dict[str, Any], side: str, seed: int) -> None:
    """Outputs, losses, hidden states and attentions are equal; positions count tokens, not padding."""
    mine, theirs = pair(name, values, seed)
    ids, mask = data.draw(batches(values["vocab_size"], side))
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    labels = _labels(name, values, ids, mask, seed)
    call = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    got = mine(ids, attention_mask=mask, **labels, **call)
    with torch.no_grad():
        wanted = theirs(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(positions),
            **{key: torch.tensor(value) for key, value in labels.items()},
            **call,
        )
    assert list(got.keys()) == list(wanted.keys())
    for key in wanted:
        if key == "loss":
            if name != "MistralForQuestionAnswering" or mask.all():  # theirs takes padding for a possible answer
                close(got.loss, wanted.loss)
        elif key == "hidden_states":
            assert len(got.hidden_states) == len(wanted.hidden_states)
            for ours_, theirs_ in zip(got.hidden_states, wanted.hidden_states, strict=True):
                close(ours_, theirs_, mask)
        elif key == "attentions":
            for ours_, theirs_ in zip(got.attentions, wanted.attentions, strict=True):
                close(ours_.transpose(0, 2, 1, 3), theirs_.transpose(1, 2), mask)
        else:
            pooled = name == "MistralForSequenceClassification"
            close(got[key], wanted[key], None if pooled else mask)


def _labels(name: str, values: dict[str, Any], ids: np.ndarray, mask: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    rows, length = ids.shape
    if name == "MistralForCausalLM":
        before = np.roll(mask, 1, axis=1)  # transformers counts labels after padding, too
        return {"labels": np.where((mask == 1) & (before == 1), ids, -100)} if length > 1 else {}
    if name == "MistralForSequenceClassification":
        if values["num_labels"] == 1:
            return {"labels": np.asarray(random.standard_normal(rows), np.float32)}
        if seed % 2:
            return {"labels": random.integers(0, 2, (rows, values["num_labels"])).astype(np.float32)}
        return {"labels": random.integers(0, values["num_labels"], rows)}
    if name == "MistralForTokenClassification":
        return {"labels": np.where(mask == 1, random.integers(0, values["num_labels"], ids.shape), -100)}
    if name == "MistralForQuestionAnswering":
        return {key: random.integers(-1, length + 2, rows) for key in ("start_positions", "end_positions")}
    return {}


@settings(max_examples=25)
@given(
    data=st.data(),
    values=configs(),
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
)
def test_with_a_cache(data: st.DataObject, values: dict[str, Any], seed: int, cuts: list[int]) -> None:
    """Ids in several calls, after left padding, give the outputs of one call; sequences outgrow the window."""
    mine, theirs = pair("MistralForCausalLM", values, seed)
    ids, mask = data.draw(batches(values["vocab_size"], "left"))
    random = np.random.default_rng(seed)
    steps = [ids, *(random.integers(0, values["vocab_size"], (len(ids), cut)) for cut in cuts)]
    whole = np.concatenate(steps, axis=1)
    full_mask = np.concatenate([mask, np.ones((len(ids), whole.shape[1] - ids.shape[1]), np.int64)], axis=1)
    positions = np.maximum(full_mask.cumsum(1) - 1, 0)
    with torch.no_grad():
        wanted = theirs(
            torch.tensor(whole), attention_mask=torch.tensor(full_mask), position_ids=torch.tensor(positions)
        ).logits
    past: Any = None
    begin = 0
    for step in steps:
        end = begin + step.shape[1]
        exposed = bool(data.draw(st.booleans()))
        output = mine(step, attention_mask=full_mask[:, :end], past_key_values=past, output_hidden_states=exposed)
        past = output.past_key_values
        assert past.get_seq_length() == end
        assert (output.hidden_states is not None) == exposed
        close(output.logits, wanted[:, begin:end], full_mask[:, begin:end])
        begin = end
    if values["sliding_window"] is None:  # nothing has been overwritten
        past.crop(ids.shape[1])
        close(mine(steps[1], past_key_values=past).logits, wanted[:, ids.shape[1] : ids.shape[1] + cuts[0]])


IDS = np.arange(1, 13).reshape(2, 6)


@pytest.mark.parametrize("keep", [0, 1, 3, 6, 9, [2], [4, 0, 4], np.array([5])])
def test_logits_to_keep(keep: Any) -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES, 0)
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS), logits_to_keep=keep if isinstance(keep, int) else torch.tensor(keep)).logits
    close(mine(IDS, logits_to_keep=keep).logits, wanted)


def test_tuples_have_no_place_for_none() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    output = mine(IDS, use_cache=False)
    assert (list(output), len(output), "loss" in output, output[0] is output.logits) == (["logits"], 1, False, True)
    logits, past = mine(IDS, return_dict=False)
    np.testing.assert_array_equal(logits, output["logits"])
    assert past.get_seq_length() == 6
    with pytest.raises(KeyError):
        output["loss"]


def test_arrays_come_back_as_they_went_in() -> None:
    mine, _ = pair("MistralModel", VALUES, 0)
    output = mine(torch.tensor(IDS), attention_mask=torch.ones(2, 6))
    assert isinstance(output.last_hidden_state, torch.Tensor)
    mx = pytest.importorskip("mlx.core")
    found = mine(mx.array(IDS)).last_hidden_state
    assert isinstance(found, mx.array)
    np.testing.assert_array_equal(np.array(found), output.last_hidden_state.numpy())
    assert isinstance(mine(IDS.tolist()).last_hidden_state, np.ndarray)
    jnp = pytest.importorskip("jax.numpy")
    found = mine(jnp.array(IDS)).last_hidden_state
    assert isinstance(found, jnp.ndarray)
    np.testing.assert_array_equal(found, output.last_hidden_state)
    coarse = mine.get_input_embeddings()(jnp.array(IDS)).astype(jnp.bfloat16)
    found = mine(inputs_embeds=coarse).last_hidden_state
    np.testing.assert_array_equal(found, mine(inputs_embeds=coarse.astype(jnp.float32)).last_hidden_state)


def prompt_and_more(model: Any, exposed: bool = True) -> tuple[Any, Any]:
    """Outputs of a padded prompt of 90 columns, beyond the window of 64, and the logits of two columns after it."""
    ids = np.random.default_rng(0).integers(3, 1000, (2, 90))
    mask = np.ones_like(ids)
    mask[1, :7] = 0
    output = model(ids, attention_mask=mask, output_hidden_states=exposed, output_attentions=exposed)
    past = output.past_key_values
    assert past.get_seq_length() == 90
    longer = np.concatenate([mask, np.ones((2, 2), np.int64)], axis=1)
    return output, model(np.array([[5, 6], [7, 8]]), past_key_values=past, attention_mask=longer).logits


@pytest.fixture(scope="module")
def expected() -> tuple[Any, Any]:
    model = ours.MistralForCausalLM.from_pretrained("tiny", backend="reference")
    return prompt_and_more(model)[0], prompt_and_more(model, exposed=False)[1]  # this cache stays in one program


@pytest.mark.parametrize("backend", ["reference", "numba", "torch", "mlx", "jax"])
def test_every_executor(backend: str, expected: tuple[Any, Any]) -> None:
    """Hidden states, attentions and a cache of the embedded model. 1e-3, as numba keeps keys and values in float16."""
    pytest.importorskip({"reference": "numpy", "mlx": "mlx.core"}.get(backend, backend))
    dtype = None if backend == "mlx" else "float32"
    wanted, more_wanted = expected
    got, more = prompt_and_more(ours.MistralForCausalLM.from_pretrained("tiny", backend=backend, dtype=dtype))
    np.testing.assert_allclose(got.logits, wanted.logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(more, more_wanted, rtol=1e-3, atol=1e-3)
    for name in ("hidden_states", "attentions"):
        for mine, theirs in zip(got[name], wanted[name], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of input_ids or inputs_embeds"),
        ({"input_ids": IDS, "inputs_embeds": IDS}, "exactly one of input_ids or inputs_embeds"),
        ({"input_ids": IDS[0]}, r"input_ids has the shape \[6\]: pass 2 axes"),
        ({"input_ids": [[1, 2], [3]]}, "rows of different lengths: pad them"),
        ({"input_ids": IDS + 0.5}, "pass integers"),
        ({"input_ids": IDS + 20}, "token id 30 is outside the vocabulary of 30"),
        ({"input_ids": IDS, "attention_mask": np.ones((2, 5))}, r"attention_mask has the shape \[2, 5\]"),
        ({"input_ids": IDS, "position_ids": np.arange(0, 12, 2)[None]}, "must count on from token to token"),
        ({"input_ids": IDS, "labels": IDS + 20}, "label 30 is outside 0..29; -100 marks what does not count"),
        ({"input_ids": IDS, "labels": IDS[:, :3]}, "labels has the shape"),
        ({"input_ids": IDS, "past_key_values": ((1,),)}, "past_key_values is a tuple: pass the Cache"),
        ({"input_ids": IDS, "past_key_values": transformers.DynamicCache()}, "is a DynamicCache: pass the Cache"),
        ({"input_ids": IDS, "logits_to_keep": -1}, "logits_to_keep=-1"),
        ({"input_ids": IDS, "use_cache": "no"}, "use_cache is a str: pass True or False"),
        ({"input_ids": IDS, "output_attentions": IDS}, "output_attentions is a ndarray: pass True or False"),
        ({"input_ids": IDS, "return_dict": 0}, "return_dict is a int: pass True or False"),
        ({"input_ids": IDS, "logits_to_keep": [6]}, "must be columns within 6"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    said = ""
    try:
        mine(**arguments)
    except ValueError as error:
        said = str(error)
    assert re.search(message, said)
    assert "\n" not in said
    assert mine.decoder.manager.lanes == ()


def test_several_rows_need_a_padding_token_to_classify() -> None:
    mine, _ = pair("MistralForSequenceClassification", {**VALUES, "pad_token_id": None}, 0)
    assert mine(IDS[:1]).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="Cannot handle batch sizes > 1 if no padding token is defined"):
        mine(IDS)


def test_lanes_are_free_again_when_nobody_holds_the_cache() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    for _ in range(200):
        past = mine(IDS).past_key_values
    assert len(mine.decoder.manager.lanes) == 2
    del past
    assert mine.decoder.manager.lanes == ()


def test_labels_after_padding_do_not_count() -> None:
    """transformers compares it with the logits of the padding before it, which are arbitrary."""
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    labels = np.where(mask == 1, IDS, -100)
    without = labels.copy()
    without[0, 2] = -100
    assert mine(IDS, attention_mask=mask, labels=labels).loss == mine(IDS, attention_mask=mask, labels=without).loss


def test_every_row_may_not_be_padding() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    with pytest.raises(ValueError, match="every row is padding"):
        mine(IDS, attention_mask=np.zeros((2, 6)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": [[0, 1, 1, 1, 1, 1, 1]] * 2}, "was masked otherwise"),
        ({"attention_mask": [[1.0, -np.inf]] * 2, "input_ids": [[1, 2]] * 2}, "other values than 0 and 1"),
        ({"position_ids": [[9]]}, "must count on from token to token"),
        ({"position_ids": [[1, 2]]}, "position_ids is int64"),
        ({"cache_position": [5]}, "cache_position must count the columns from 6 on"),
        ({"cache_position": "nonsense"}, "cache_position is <U8: pass integers"),
    ],
)
def test_what_contradicts_the_cache_is_refused(arguments: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    past = mine(IDS).past_key_values
    with pytest.raises(ValueError, match=message):
        mine(**{"input_ids": [[5], [6]], "past_key_values": past, **arguments})
    right = {"position_ids": [[6]], "cache_position": [6], "attention_mask": np.ones((2, 7))}
    same = mine([[5], [6]], past_key_values=past, **right).logits
    whole = mine(np.concatenate([IDS, [[5], [6]]], axis=1)).logits
    np.testing.assert_allclose(same[:, 0], whole[:, -1], rtol=1e-4, atol=1e-4)


def test_caches_are_copied_and_not_shared() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    other, _ = pair("MistralForCausalLM", VALUES, 1)
    past = mine(IDS).past_key_values
    twin = copy.deepcopy(past)
    assert not set(twin.lanes) & set(past.lanes)
    first = mine([[5], [6]], past_key_values=past).logits
    np.testing.assert_array_equal(mine([[5], [6]], past_key_values=twin).logits, first)
    with pytest.raises(ValueError, match="another model's"):
        other([[5], [6]], past_key_values=past)
    past.close()
    with pytest.raises(ClosedError, match="past_key_values are closed"):
        mine([[5], [6]], past_key_values=past)


def test_a_call_that_fails_leaves_the_cache_as_it_was() -> None:
    mine, _ = pair("MistralForCausalLM", {**VALUES, "max_position_embeddings": 2000}, 0)
    past, twin = (mine(IDS).past_key_values for _ in range(2))
    with pytest.raises(ValueError, match="2006 tokens exceed max_position_embeddings=2000"):
        mine(np.ones((2, 2000), np.int64), past_key_values=past)
    assert past.get_seq_length() == 6
    np.testing.assert_array_equal(
        mine([[5], [6]], past_key_values=past).logits, mine([[5], [6]], past_key_values=twin).logits
    )
    mine(np.ones((2, 1200), np.int64), past_key_values=past, attention_mask=np.eye(2, 1200) + np.eye(2, 1200, 1) > 0)
    lengths = [mine.decoder.manager.length(lane) for lane in past.lanes]
    assert lengths == [9, 9]


def test_a_closed_model_stays_closed() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    mine.close()
    calls: tuple[Callable[[], object], ...] = (lambda: mine(IDS), lambda: mine.generate(IDS), lambda: mine.device)
    for call in calls:
        with pytest.raises(ClosedError, match="the model is closed"):
            call()


def test_threads_have_lanes_of_their_own() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    expected = mine(IDS).logits
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: mine(IDS).logits, range(60)))
    finally:
        sys.setswitchinterval(before)
    for logits in found:
        np.testing.assert_array_equal(logits, expected)


def test_rows_without_a_lane_wait_for_others() -> None:
    """Calls that keep no cache run 256 rows at a time, whatever caches hold."""
    mine, _ = pair("MistralForCausalLM", VALUES, 0, "float64")
    held = mine(IDS).past_key_values
    ids = np.random.default_rng(0).integers(1, 30, (600, 5))
    mask = np.ones_like(ids)
    mask[::3, :2] = mask[300:310] = 0  # and rows of nothing but padding
    found = mine(ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    for rows in (slice(0, 3), slice(250, 260), slice(508, 520), slice(598, 600)):
        some = mine(ids[rows], attention_mask=mask[rows], use_cache=False, output_hidden_states=True)
        np.testing.assert_allclose(found.logits[rows], some.logits, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(found.hidden_states[1][rows], some.hidden_states[1], rtol=1e-9, atol=1e-9)
    assert not found.logits[300:310].any()
    assert len(mine.decoder.manager.lanes) == len(held)
    with pytest.raises(BusyError, match="600 rows more: caches have at most 256 in all: pass use_cache=False"):
        mine(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="every row is padding"):
        mine(ids, attention_mask=np.zeros_like(ids), use_cache=False)


def test_exceptions_that_are_kept_keep_no_lanes() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    kept = []
    for _ in range(3):
        with pytest.raises(ValueError, match="every row is padding") as raised:
            mine(IDS, attention_mask=np.zeros_like(IDS))
        kept.append(raised)
    assert mine.decoder.manager.lanes == ()


def test_only_the_logits_that_are_asked_for_take_memory() -> None:
    mine, _ = pair("MistralForCausalLM", {**VALUES, "max_position_embeddings": 4096}, 0)
    ids = np.ones((4, 2000), np.int64)
    tracemalloc.start()
    logits = mine(ids, logits_to_keep=1, use_cache=False).logits
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert logits.shape == (4, 1, 30)
    tracemalloc.start()
    whole = mine(ids, use_cache=False).logits
    assert tracemalloc.get_traced_memory()[1] > peak + whole.nbytes / 2
    tracemalloc.stop()
    np.testing.assert_allclose(logits[:, 0], whole[:, -1], rtol=1e-5, atol=1e-5)


def test_a_classifier_counts_no_masked_token() -> None:
    """A masked token does not count, even if its id is not the config's pad_token_id."""
    mine, _ = pair("MistralForSequenceClassification", VALUES, 0)
    alone = mine(IDS[:1]).logits
    padded, mask = np.append(IDS[:1], [[2, 2]], axis=1), np.array([[1] * 6 + [0] * 2])
    np.testing.assert_allclose(mine(padded, attention_mask=mask).logits, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labels", ["x", [0.5], [True]])
def test_refused_labels_decide_nothing(labels: Any) -> None:
    mine, _ = pair("MistralForSequenceClassification", VALUES, 0)
    with pytest.raises(ValueError, match="labels"):
        mine(IDS[:1], labels=labels)
    assert mine.config.problem_type is None
    assert mine(IDS[:1], labels=[1]).loss > 0


@pytest.mark.parametrize("window", [None, 4])
def test_copies_of_a_cache_go_on_in_several_programs(window: int | None) -> None:
    """They share pages; a call that exposes hidden states moves its cache to another program of the model."""
    mine = pair("MistralForCausalLM", {**VALUES, "sliding_window": window}, 0)[0]
    text = np.arange(1, 22)[None] % 29
    expected = mine(text).logits
    past = mine(text[:, :18]).past_key_values
    twins = [copy.copy(past) for _ in range(2)]
    for begin in (18, 19, 20):
        for index, cache in enumerate([*twins, past]):
            exposed = (index + begin) % 3 == 0
            step = text[:, begin : begin + 1]
            logits = mine(step, past_key_values=cache, output_hidden_states=exposed).logits
            np.testing.assert_allclose(logits, expected[:, begin : begin + 1], rtol=0, atol=1e-4)
        past.crop(begin)  # the next step writes the same position again, in a page that is its own by now
        mine(text[:, begin : begin + 1], past_key_values=past, output_attentions=begin == 19)


@pytest.mark.parametrize("length", [1.5, True, "x", None])
def test_caches_are_cropped_to_whole_columns(length: Any) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    past = mine(IDS).past_key_values
    with pytest.raises(ValueError, match="pass an integer"):
        past.crop(length)
    assert past.get_seq_length() == 6
