"""generate() gives transformers' tokens, and each row of a batch gets the tokens that it gets alone."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from documented_models import VALUES, batches, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours
from mistral_portable.errors import BusyError


@settings(max_examples=20)
@given(data=st.data(), values=configs(), seed=st.integers(0, 2**31), new=st.integers(1, 25))
def test_greedy_tokens_after_left_padding(data: st.DataObject, values: dict[str, Any], seed: int, new: int) -> None:
    mine, theirs = pair("MistralForCausalLM", values, seed)
    ids, mask = data.draw(batches(values["vocab_size"], "left"))
    call = {"max_new_tokens": new, "eos_token_id": values["vocab_size"] - 1, "pad_token_id": 0}
    wanted = theirs.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, **call)
    found = mine.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **call)
    assert found.dtype == torch.int64
    for row, (some, other) in enumerate(zip(found.numpy(), wanted.numpy(), strict=False)):
        length = min(len(some), len(other))
        if len(differ := np.flatnonzero(some[:length] != other[:length])):  # only rounding may decide otherwise
            tokens = some[: differ[0]][np.append(mask[row], np.ones(length, np.int64))[: differ[0]] == 1]
            logits = mine(tokens[None], logits_to_keep=1).logits[0, 0]
            assert abs(logits[some[differ[0]]] - logits[other[differ[0]]]) < 1e-5
        else:
            assert not some[length:].any()
            assert not other[length:].any()


PADDED = [[0, 0, 7, 8, 9], [3, 4, 5, 6, 2], [0, 0, 0, 3, 2]]


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"pad_token_id": 4},
        {"eos_token_id": 0},
        {"eos_token_id": [29, 0]},
        {"eos_token_id": 29},
        {"eos_token_id": 29, "pad_token_id": 29},
    ],
)
@pytest.mark.parametrize("changed", [{}, {"pad_token_id": None}, {"eos_token_id": None}])
def test_padding_without_a_mask_is_found_as_by_transformers(call: dict[str, Any], changed: dict[str, Any]) -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES | changed, 5)
    wanted = theirs.generate(torch.tensor(PADDED), do_sample=False, max_new_tokens=4, **call)
    np.testing.assert_array_equal(mine.generate(PADDED, max_new_tokens=4, **call), wanted.numpy())


def test_padding_is_found_for_every_answer_and_not_among_embeddings() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 5)
    call = {"max_new_tokens": 4, "eos_token_id": 29, "do_sample": True, "num_return_sequences": 2, "seed": 1}
    masked = mine.generate(PADDED, attention_mask=(np.array(PADDED) != 0).astype(int), **call)
    np.testing.assert_array_equal(mine.generate(PADDED, **call), masked)
    embeds = mine.get_input_embeddings()(PADDED)
    whole = mine.generate(PADDED, attention_mask=np.ones((3, 5), int), max_new_tokens=4)
    np.testing.assert_array_equal(mine.generate(inputs_embeds=embeds, max_new_tokens=4), whole[:, 5:])


@settings(max_examples=20)
@given(data=st.data(), values=configs(), seed=st.integers(0, 2**31), sample=st.booleans())
def test_rows_are_as_if_alone_wherever_the_padding_is(
    data: st.DataObject, values: dict[str, Any], seed: int, sample: bool
) -> None:
    mine, _ = pair("MistralForCausalLM", values, seed, "float64")  # or rounding would decide at times
    ids, mask = data.draw(batches(values["vocab_size"], "right"))
    for row in range(len(ids)):  # and in the middle
        tokens = np.flatnonzero(mask[row])
        mask[row, tokens[1 : 1 + data.draw(st.integers(0, max(0, len(tokens) - 2)))]] = 0
    call = {"max_new_tokens": 9, "eos_token_id": values["vocab_size"] - 1, "pad_token_id": 0, "do_sample": sample}
    together = mine.generate(ids, attention_mask=mask, seed=seed, **call)[:, ids.shape[1] :]
    for row in range(len(ids)):
        own = ids[row : row + 1, mask[row] == 1]
        alone = mine.generate(own, attention_mask=np.ones_like(own), seed=seed + row, **call)[0, own.shape[1] :]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert not together[row, len(alone) :].any()


def test_more_than_one_answer_to_a_prompt() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    found = mine.generate([[1, 2, 3]], max_length=9, do_sample=True, num_return_sequences=5, seed=3, eos_token_id=29)
    assert found.shape[0] == 5
    assert 3 < found.shape[1] <= 9
    assert len({tuple(row) for row in found.tolist()}) > 1
    again = mine.generate([[1, 2, 3]], max_length=9, do_sample=True, num_return_sequences=5, seed=3, eos_token_id=29)
    np.testing.assert_array_equal(found, again)


def test_the_embedded_model_writes_what_the_native_interface_writes() -> None:
    import mistral_portable as mp

    model = ours.MistralForCausalLM.from_pretrained("tiny", backend="numba", dtype="float32")
    native = mp.load("tiny", backend="numba", dtype="float32")
    prompt = native.tokenizer.encode("Once upon a time")
    found = model.generate([prompt], max_new_tokens=100)
    expected = native.generate("Once upon a time", max_tokens=100, temperature=0)
    assert found[0, len(prompt) :].tolist() == list(expected.tokens)


def test_more_rows_than_lanes() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0, "float64")
    ids = np.random.default_rng(0).integers(1, 30, (300, 4))
    call: dict[str, Any] = {"max_new_tokens": 6, "eos_token_id": 7, "pad_token_id": 0, "do_sample": True}
    found = mine.generate(ids, seed=5, **call)
    for row in (0, 255, 256, 299):
        alone = mine.generate(ids[row : row + 1], seed=5 + row, **call)[0]
        assert found[row, : len(alone)].tolist() == alone.tolist()
        assert not found[row, len(alone) :].any()
    assert mine.decoder.manager.lanes == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of inputs and input_ids"),
        ({"inputs": [[1]], "input_ids": [[1]]}, "one of inputs and input_ids"),
        (
            {"inputs": [[1]], "num_beam_groups": 4},
            "generate: num_beam_groups=4 is not supported: transformers 5 has it",
        ),
        ({"inputs": [[1]], "max_new_tokens": 0}, "max_new_tokens=0 must be an integer from 1 on"),
        ({"inputs": [[1, 2]], "max_length": 2}, "max_length=2 leaves no room after the 2 columns of the prompt"),
        ({"inputs": [[1]], "num_return_sequences": 2}, "num_return_sequences=2 would all be the same"),
        ({"inputs": [[1]], "max_new_tokens": 65}, r"1 \+ 65 tokens exceed max_position_embeddings=64"),
        ({"inputs": [[1, 2]], "attention_mask": [[0, 0]]}, "row 0 of input_ids is all padding"),
        ({"inputs": [[1]], "do_sample": True, "temperature": -1}, "temperature=-1"),
        ({"inputs": [[1]], "do_sample": "no"}, "do_sample is a str: pass True or False"),
        ({"inputs": [[1]], "do_sample": 1}, "do_sample is a int: pass True or False"),
        ({"inputs": [[1]], "temperature": "hot"}, "temperature='hot' must be a number"),
        ({"inputs": [[1]], "top_p": "x"}, "top_p='x' must be a number"),
        ({"inputs": [[1]], "seed": "x"}, "seed='x' must be an integer"),
        ({"inputs": [[1]], "eos_token_id": "x"}, "eos_token_id is <U1: pass integers"),
        ({"inputs": [[1]], "pad_token_id": [1]}, "pad_token_id has the shape"),
        ({"inputs": [[1]], "num_return_sequences": "2"}, "num_return_sequences='2' must be an integer"),
        ({"inputs": [[1]], "attention_mask": "x"}, "attention_mask has the shape"),
        ({"inputs": [[1]], "use_cache": "no"}, "use_cache is a str: pass True or False"),
        ({"inputs": [[1]], "temprature": 1}, "temprature=1 is not supported: is temperature meant?"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    with pytest.raises(ValueError, match=message):
        mine.generate(**arguments)


def test_what_changes_nothing_is_taken() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    plain = mine.generate([[1, 2]], max_new_tokens=5)
    same = {"num_beams": 1, "top_p": None, "do_sample": None, "temperature": 0.7, "use_cache": True}
    np.testing.assert_array_equal(mine.generate([[1, 2]], max_new_tokens=np.int64(5), **same), plain)


def test_threads_find_lanes_whatever_their_rows() -> None:
    """Calls that keep no cache find lanes beside other threads, and where caches hold all of theirs."""
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    held = mine(np.ones((256, 1), np.int64)).past_key_values
    ids = np.random.default_rng(0).integers(1, 30, (300, 3))
    wanted = mine.generate(ids, max_new_tokens=3)

    def call(rows: int) -> None:
        np.testing.assert_array_equal(mine.generate(ids[:rows], max_new_tokens=3), wanted[:rows])
        assert mine(ids[:rows], use_cache=False).logits.shape == (rows, 3, 30)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, [200, 300, 20, 150]))
    with pytest.raises(BusyError, match="256 rows more: caches have at most 256 in all: pass use_cache=False"):
        copy.copy(held)
    assert len(mine.decoder.manager.lanes) == 256
