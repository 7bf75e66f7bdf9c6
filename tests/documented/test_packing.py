"""Several texts in a row, by position_ids or by a mask of four axes, beside transformers and beside each text alone."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from documented_models import HEADS, VALUES, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

IDS = np.arange(3, 13)[None]
POSITIONS = np.array([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1]])


@st.composite
def texts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Position ids and text numbers [2, 14]: each row is cut into texts of drawn lengths."""
    positions, numbers = np.zeros((2, 14), np.int64), np.zeros((2, 14), np.int64)
    for row in range(2):
        cuts = [0, *sorted(draw(st.sets(st.integers(1, 13), max_size=4))), 14]
        for number, (begin, end) in enumerate(pairwise(cuts)):
            positions[row, begin:end], numbers[row, begin:end] = np.arange(end - begin), number
    return positions, numbers


def four_axes(numbers: np.ndarray, window: int | None) -> np.ndarray:
    """The mask of texts side by side: bool [B, 1, T, T]."""
    place = np.arange(numbers.shape[1])
    distance = place[:, None] - place
    seen: np.ndarray = (numbers[:, :, None] == numbers[:, None]) & (distance >= 0) & (distance < (window or 99))
    return seen[:, None]


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=8)  # for each of five heads
@given(values=configs(), drawn=texts(), seed=st.integers(0, 2**31))
def test_packed_rows_equal_transformers(name: str, values: dict[str, Any], drawn: Any, seed: int) -> None:
    mine, theirs = pair(name, values, seed)
    positions, numbers = drawn
    ids = np.random.default_rng(seed).integers(1, values["vocab_size"], positions.shape)
    call = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    with torch.no_grad():
        wanted = theirs(torch.tensor(ids), position_ids=torch.tensor(positions), **call)
    mask = four_axes(numbers, values["sliding_window"])
    added = np.where(mask, 0.0, np.finfo(np.float32).min).astype(np.float32)
    for packed in ({"position_ids": positions}, {"attention_mask": mask}, {"attention_mask": added}):
        got = mine(ids, **packed, **call)
        assert list(got.keys()) == list(wanted.keys())
        for key in wanted:
            ours_, theirs_ = (value[key] if isinstance(value[key], tuple) else (value[key],) for value in (got, wanted))
            for one, other in zip(ours_, theirs_, strict=True):
                np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-4)


def test_each_text_gives_what_it_gives_alone() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    packed = mine(IDS, position_ids=POSITIONS)
    assert packed.past_key_values is None
    for begin, end in ((0, 3), (3, 8), (8, 10)):
        alone = mine(IDS[:, begin:end], use_cache=False).logits
        np.testing.assert_allclose(packed.logits[:, begin:end], alone, rtol=1e-5, atol=1e-5)
    some = mine(IDS, position_ids=POSITIONS, logits_to_keep=np.array([9, 2])).logits
    assert np.array_equal(some, packed.logits[:, [9, 2]])
    embeds = mine.get_input_embeddings()(IDS)
    np.testing.assert_allclose(mine(inputs_embeds=embeds, position_ids=POSITIONS).logits, packed.logits, atol=1e-5)


def test_a_causal_mask_of_four_axes_is_no_packing() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    mask = four_axes(np.zeros((1, 10), int), VALUES["sliding_window"])
    mask[:, :, :2] = mask[:, :, :, :2] = False  # two tokens of padding
    got = mine(IDS, attention_mask=mask)
    two_axes = np.array([[0, 0, *[1] * 8]])
    assert np.array_equal(got.logits, mine(IDS, attention_mask=two_axes).logits)
    assert got.past_key_values.get_seq_length() == 10


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"position_ids": POSITIONS, "use_cache": True}, "no cache of rows that hold several texts"),
        ({"position_ids": POSITIONS, "attention_mask": np.ones((1, 10))}, "must count on from token to token"),
        ({"position_ids": POSITIONS + 1}, "must count on from token to token"),
        ({"attention_mask": np.ones((1, 1, 10, 10), bool)}, "each token must see all tokens before it of its own text"),
        ({"attention_mask": np.eye(10, dtype=bool)[None, None, ::-1]}, "each token must see all tokens before it"),
        ({"attention_mask": np.ones((1, 2, 10, 10), bool)}, r"pass \[1, 1, 10, 10\]"),
        ({"attention_mask": np.ones((1, 1, 10, 9), bool)}, r"pass \[1, 1, 10, 10\]"),
        ({"attention_mask": np.ones((1, 1, 10, 10), int)}, "is int64: pass bools, or floats"),
        ({"attention_mask": np.full((1, 1, 10, 10), 0.5)}, "adds other numbers than 0"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], why: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    with pytest.raises(ValueError, match=why) as raised:
        mine(IDS, **arguments)
    assert "\n" not in str(raised.value)


def test_four_axes_beside_a_cache_are_refused() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    past = mine(IDS).past_key_values
    with pytest.raises(ValueError, match="goes without past_key_values"):
        mine(IDS[:, :1], past_key_values=past, attention_mask=np.ones((1, 1, 1, 11), bool))
