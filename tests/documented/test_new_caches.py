"""DynamicCache and StaticCache that callers make, beside transformers' caches of these names."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import VALUES, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours

IDS = np.array([[3, 5, 7, 2, 4, 6], [6, 4, 2, 7, 5, 3]])


@settings(max_examples=20)  # as the other tests with caches
@given(values=configs(), cuts=st.lists(st.integers(1, 4), min_size=1, max_size=4), static=st.booleans(), data=st.data())
def test_a_text_in_pieces(values: dict[str, Any], cuts: list[int], static: bool, data: st.DataObject) -> None:
    values = {**values, "sliding_window": None if values["sliding_window"] == 1 else values["sliding_window"]}
    mine, theirs = pair("MistralForCausalLM", values, data.draw(st.integers(0, 99)))
    ids = np.array(data.draw(st.lists(st.integers(3, values["vocab_size"] - 1), min_size=16, max_size=16)))[None]
    # transformers' StaticCache keeps a window, too, if it is told the config.
    their_past: Any = transformers.DynamicCache(config=theirs.config)
    past = ours.StaticCache(mine.config, max_cache_len=16) if static else ours.DynamicCache(config=mine.config)
    begin = 0
    for length in cuts:
        piece = ids[:, begin : begin + length]
        with torch.no_grad():
            wanted = theirs(torch.tensor(piece), past_key_values=their_past, use_cache=True)
        got = mine(piece, past_key_values=past)
        assert got.past_key_values is past
        np.testing.assert_allclose(got.logits, wanted.logits.numpy(), rtol=1e-4, atol=1e-4)
        begin += length
        assert past.get_seq_length() == their_past.get_seq_length() == begin


def test_a_cache_of_a_call_is_a_dynamic_one() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    assert isinstance(mine(IDS).past_key_values, ours.DynamicCache)
    assert mine(IDS, use_cache=False).past_key_values is None


def test_a_new_cache_is_empty() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    past = ours.DynamicCache()
    past.crop(0)
    twin = copy.deepcopy(past)
    assert (len(past), past.get_seq_length()) == (0, 0)
    first = mine(IDS, past_key_values=past).logits
    assert (len(past), past.get_seq_length()) == (2, 6)
    assert np.array_equal(mine(IDS, past_key_values=twin).logits, first)


def test_a_call_that_fails_leaves_it_new() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    other, _ = pair("MistralForCausalLM", VALUES, 1)
    past = ours.DynamicCache()
    with pytest.raises(ValueError, match="outside the vocabulary"):
        mine(IDS + 10**6, past_key_values=past)
    assert other(IDS, past_key_values=past).past_key_values is past  # it is no model's yet
    with pytest.raises(ValueError, match="another model's"):
        mine(IDS, past_key_values=past)


def test_a_static_cache_is_full_at_its_length() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    past = ours.StaticCache(mine.config, max_cache_len=8)
    mine(IDS, past_key_values=past)
    with pytest.raises(ValueError, match=r"6 \+ 3 columns exceed max_cache_len=8"):
        mine(IDS[:, :3], past_key_values=past)
    assert mine(IDS[:, :2], past_key_values=past).past_key_values.get_seq_length() == 8
    for wrong in (None, 0, True, 2.5):
        with pytest.raises(ValueError, match=r"max_cache_len=.* must be an integer from 1 on"):
            ours.StaticCache(mine.config, max_cache_len=wrong)  # type: ignore[arg-type]  # that is the mistake
