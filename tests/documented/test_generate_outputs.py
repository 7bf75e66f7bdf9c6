"""generate(return_dict_in_generate=True), caches that go in and come out, and drafts: as transformers has them."""

import copy
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from documented_models import VALUES, batches, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours
from mistral_portable.boundary.registry import candidates
from mistral_portable.errors import BusyError, ClosedError

EXECUTORS = [one.name for one in candidates() if one.backend and one.availability.score]
PROMPT = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
CALL: dict[str, Any] = {"max_new_tokens": 7, "eos_token_id": 29, "pad_token_id": 0, "return_dict_in_generate": True}
ALL = {"output_scores": True, "output_logits": True, "output_attentions": True, "output_hidden_states": True}


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted.detach().numpy(), rtol=1e-4, atol=1e-4)


@settings(max_examples=20)  # windows, heads and lengths; 60 ms each
@given(values=configs(), seed=st.integers(0, 2**31), length=st.integers(1, 20), new=st.integers(1, 9))
def test_all_that_steps_make(values: dict[str, Any], seed: int, length: int, new: int) -> None:
    mine, theirs = pair("MistralForCausalLM", values, seed)
    ids = torch.tensor(np.random.default_rng(seed).integers(0, values["vocab_size"], (2, length)))
    call = CALL | ALL | {"max_new_tokens": new, "eos_token_id": values["vocab_size"] - 1}
    wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), **call)
    found = mine.generate(ids, attention_mask=torch.ones_like(ids), **call)
    if not torch.equal(found.sequences, wanted.sequences):  # only rounding may decide otherwise
        differ = (found.sequences != wanted.sequences).any(0).nonzero()[0, 0] - length
        assert (wanted.scores[differ].topk(2).values.diff().abs() < 1e-4).any()
        return
    assert {*found.keys()} - {"past_key_values"} == {*wanted.keys()} - {"cache"}
    steps = found.sequences.shape[1] - length
    going = np.cumsum(found.sequences[:, length:].numpy() == call["eos_token_id"], axis=1) == 0
    for step in range(steps):
        rows = np.ones(2, bool) if step == 0 else going[:, step - 1]
        for name in ("scores", "logits"):
            close(found[name][step][rows], wanted[name][step][rows])
        for name in ("hidden_states", "attentions"):
            assert len(found[name][step]) == len(wanted[name][step])
            for some, other in zip(found[name][step], wanted[name][step], strict=True):
                width = other.shape[-1]  # transformers drops keys that have left the window
                close(some[rows][..., some.shape[-1] - width :], other[rows])


def test_what_is_not_asked_for_is_left_out() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 2)
    found = mine.generate(PROMPT, **CALL)
    assert isinstance(found, ours.outputs.GenerateDecoderOnlyOutput)
    assert found.keys() == ("sequences", "past_key_values")
    assert found.cache is found.past_key_values
    assert mine.generate(PROMPT, **CALL, use_cache=False).keys() == ("sequences",)
    tokens = mine.generate(PROMPT, **CALL | ALL | {"return_dict_in_generate": False})
    np.testing.assert_array_equal(tokens, found.sequences)
    del found
    assert mine.decoder.manager.lanes == ()


@settings(max_examples=20)  # each generates up to six times
@given(
    data=st.data(),
    values=configs(),
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_a_chat_goes_on_in_its_cache(data: st.DataObject, values: dict[str, Any], seed: int, cuts: list[int]) -> None:
    """Turn after turn: all ids, or those that follow with the mask of all, give what all ids give without a cache."""
    mine, _ = pair("MistralForCausalLM", values, seed, "float64")
    ids, mask = data.draw(batches(values["vocab_size"], "left"))
    past: Any = None
    random = np.random.default_rng(seed)
    call = CALL | {"eos_token_id": values["vocab_size"] - 1}
    for count in cuts:
        if ids.shape[1] + 7 > 60:
            return
        wanted = mine.generate(ids, attention_mask=mask, **call, use_cache=False).sequences
        whole = past is None or data.draw(st.booleans())
        given_ids = ids if whole else ids[:, past.get_seq_length() :]
        found = mine.generate(given_ids, attention_mask=mask, past_key_values=past, **call)
        np.testing.assert_array_equal(found.sequences[:, given_ids.shape[1] :], wanted[:, ids.shape[1] :])
        assert past is None or found.past_key_values is past
        past = found.past_key_values
        assert past.get_seq_length() == wanted.shape[1] - 1
        made = wanted[:, ids.shape[1] :]
        ended = np.cumsum(made == call["eos_token_id"], axis=1) - (made == call["eos_token_id"]) > 0
        new = random.integers(0, values["vocab_size"], (len(ids), count))
        ids = np.concatenate([wanted, new], axis=1)
        mask = np.concatenate([mask, ~ended, np.ones_like(new)], axis=1).astype(int)


def test_a_cache_of_transformers_examples() -> None:
    """One prompt is read once and continued in several ways; a cache of calls goes on in generate."""
    mine, _ = pair("MistralForCausalLM", VALUES, 4, "float64")
    begun = mine([[1, 2, 3, 4]]).past_key_values
    for more in ([5, 6], [7], [8, 9, 10]):
        wanted = mine.generate([[1, 2, 3, 4, *more]], max_new_tokens=5)
        found = mine.generate([[1, 2, 3, 4, *more]], past_key_values=copy.deepcopy(begun), max_new_tokens=5)
        np.testing.assert_array_equal(found, wanted)
    wanted = mine.generate([[1, 2, 3, 4, 7]] * 2, max_new_tokens=5)
    np.testing.assert_array_equal(
        mine.generate([[1, 2, 3, 4, 7]] * 2, cache=begun.take([0, 0]), max_new_tokens=5), wanted
    )
    assert begun.get_seq_length() == 4


def test_caches_that_callers_make() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 4, "float64")
    wanted = mine.generate([[1, 2, 3, 4, 5]], max_new_tokens=6)
    for past in (ours.DynamicCache(), ours.StaticCache(max_cache_len=10)):
        np.testing.assert_array_equal(
            mine.generate([[1, 2, 3]], past_key_values=past, max_new_tokens=2)[:, :3], [[1, 2, 3]]
        )
        past.crop(3)
        np.testing.assert_array_equal(mine.generate([[1, 2, 3, 4, 5]], past_key_values=past, max_new_tokens=6), wanted)
    with pytest.raises(ValueError, match=r"0 \+ 12 columns exceed max_cache_len=9"):
        mine.generate([[1, 2, 3]], past_key_values=ours.StaticCache(max_cache_len=9), max_new_tokens=10)
    past = ours.DynamicCache()
    with pytest.raises(ZeroDivisionError):
        mine.generate([[1, 2, 3]], past_key_values=past, logits_processor=[lambda ids, scores: 1 / 0])
    assert past.is_new
    mine.generate([[1, 2, 3]], past_key_values=past, num_beams=2)
    assert past.is_new


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"past_key_values": "x"}, "past_key_values is a str: pass the Cache"),
        ({"inputs": [[1, 2]]}, "inputs have 2 columns, and past_key_values 4: pass all ids and more"),
        ({"inputs": [[1, 2, 3, 4, 5]] * 2}, "past_key_values have 1 rows, and inputs 2"),
        ({"max_new_tokens": 61}, r"5 \+ 61 tokens exceed max_position_embeddings=64"),
        ({"attention_mask": [[0, 1, 1, 1, 1]]}, "what is in past_key_values was masked otherwise"),
    ],
)
def test_caches_that_do_not_fit_are_one_line(call: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    past = mine([[1, 2, 3, 4]]).past_key_values
    with pytest.raises(ValueError, match=message) as caught:
        mine.generate(**{"inputs": [[1, 2, 3, 4, 5]], "past_key_values": past} | call)
    assert "\n" not in str(caught.value)
    assert past.get_seq_length() == 4


def test_a_call_that_fails_leaves_the_cache_as_it_was() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES | {"sliding_window": None}, 0)
    past = mine([[1, 2, 3, 4]]).past_key_values
    steps = []

    def fails(ids: Any, scores: Any) -> Any:
        steps.append(1)
        if len(steps) == 4:
            raise KeyError("mine")
        return scores

    with pytest.raises(KeyError, match="mine"):
        mine.generate([[1, 2, 3, 4, 5]], past_key_values=past, logits_processor=[fails], min_new_tokens=9)
    assert past.get_seq_length() == 4
    np.testing.assert_array_equal(
        mine.generate([[1, 2, 3, 4, 5]], past_key_values=past, max_new_tokens=3),
        mine.generate([[1, 2, 3, 4, 5]], max_new_tokens=3),
    )
    past.close()
    with pytest.raises(ClosedError, match="past_key_values are closed"):
        mine.generate([[1, 2, 3, 4, 5]], past_key_values=past)


def test_caches_that_are_returned_have_so_many_rows() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    with pytest.raises(BusyError, match="257 rows more: caches have at most 256 in all"):
        mine.generate([[1, 2]] * 257, **CALL)
    assert mine.decoder.manager.lanes == ()


@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores(normalize: bool) -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES, 6)
    ids = torch.tensor(PROMPT)
    made = mine.generate(ids, **CALL, output_scores=True)
    found = mine.compute_transition_scores(made.sequences, made.scores, normalize_logits=normalize)
    wanted = theirs.compute_transition_scores(made.sequences, made.scores, normalize_logits=normalize)
    assert type(found) is torch.Tensor
    close(found, wanted)
    with pytest.raises(ValueError, match="scores are empty"):
        mine.compute_transition_scores(made.sequences, ())


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor(name: str) -> None:
    """Step by step, with drafts and in the loop: the same tokens; and scores are the logits of a call."""
    model = ours.MistralForCausalLM.from_pretrained("tiny", backend=name, dtype="float32")
    ids = ours.AutoTokenizer.from_pretrained("tiny")(
        ["One, two, one, two, one", "The"], padding=True, return_tensors="np"
    )
    plain = model.generate(**ids, max_new_tokens=16)
    found = model.generate(**ids, max_new_tokens=16, return_dict_in_generate=True, output_scores=True)
    np.testing.assert_array_equal(found.sequences, plain)
    np.testing.assert_array_equal(model.generate(**ids, max_new_tokens=16, prompt_lookup_num_tokens=5), plain)
    logits = model(
        plain[:, :-1], attention_mask=np.pad(ids["attention_mask"], ((0, 0), (0, 15)), constant_values=1)
    ).logits
    # In float32, where a step of one token is summed up in another order than one of many.
    np.testing.assert_allclose(np.stack(found.scores, 1)[0], logits[0, -16:], rtol=1e-3, atol=1e-3)


@settings(max_examples=15)  # each loads two models and generates twice
@given(values=configs(), seed=st.integers(0, 2**31), sample=st.booleans(), same=st.booleans(), data=st.data())
def test_an_assistant_changes_no_token(
    values: dict[str, Any], seed: int, sample: bool, same: bool, data: st.DataObject
) -> None:
    """Whether it says the same or something else; drafts are as long as may be."""
    mine, _ = pair("MistralForCausalLM", values, seed)
    assistant, _ = pair("MistralForCausalLM", values, seed if same else seed + 1)
    ids, mask = data.draw(batches(values["vocab_size"], "left"))
    call: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 16, "do_sample": sample, "seed": 3}
    expected = mine.generate(ids, **call)
    drafting = import_module("mistral_portable.engine.model_drafting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "best_lengths", lambda chances, seconds: [len(some) for some in chances])
        steps, step = list[int](), assistant.decoder.program.step

        def noted(plan: Any, *given: Any) -> Any:
            steps.append(len(plan.tokens))
            return step(plan, *given)

        patch.setattr(assistant.decoder.program, "step", noted)
        found = mine.generate(ids, **call, assistant_model=assistant)
    assert steps or expected.shape[1] - ids.shape[1] < 3  # the last token is no step's
    np.testing.assert_array_equal(found, expected)
    if same:  # it goes on alone
        np.testing.assert_array_equal(assistant.generate(ids, **call), expected)


def test_an_assistant_with_other_ids_is_refused() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    other, _ = pair("MistralForCausalLM", VALUES | {"vocab_size": VALUES["vocab_size"] + 1}, 0)
    with pytest.raises(ValueError, match=r"assistant_model has \d+ token ids"):
        mine.generate([[1, 2]], assistant_model=other)
