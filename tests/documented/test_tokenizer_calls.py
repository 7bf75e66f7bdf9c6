"""Encoding, truncating and padding, with every combination of arguments, give the results of transformers' class."""

from copy import copy, deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from documented.tokenizers import NAMES, ours, same, theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer.strategies import texts
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils.generic import PaddingStrategy, TensorType

SINGLE = (TruncationStrategy.LONGEST_FIRST, TruncationStrategy.DO_NOT_TRUNCATE)
PAIRS = st.sampled_from([(name, "test") for name in NAMES] + [("v3", "finetuning"), ("tekken 240718", "finetuning")])
SIDES = st.sampled_from(["left", "right"])
MAYBE = st.sampled_from([None, False, True])
PADDINGS = st.sampled_from([False, True, "longest", "max_length", "do_not_pad", *PaddingStrategy])
TRUNCATIONS = st.sampled_from([None, False, True, "longest_first", "do_not_truncate", *SINGLE])
TENSORS = st.sampled_from([None, None, None, "np", "pt", TensorType.NUMPY])
IDS = st.lists(st.integers(0, 999), max_size=12)
LIMITS = st.none() | st.integers(1, 6) | st.integers(1, 16)
MULTIPLES = st.none() | st.integers(1, 6)

LENGTHS = {
    "padding": PADDINGS,
    "truncation": TRUNCATIONS,
    "max_length": LIMITS,
    "stride": st.integers(0, 5),
    "pad_to_multiple_of": MULTIPLES,
    "padding_side": st.none() | SIDES,
    "return_tensors": TENSORS,
    "add_special_tokens": st.booleans(),
}
RETURNS = {
    "return_attention_mask": MAYBE,
    "return_overflowing_tokens": st.booleans(),
    "return_special_tokens_mask": st.booleans(),
    "return_length": st.booleans(),
}


def arguments(**all: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Either all arguments, as interactions matter, or some, with defaults for the others."""
    return st.fixed_dictionaries(all) | st.fixed_dictionaries({}, optional=all)


@st.composite
def both(draw: st.DrawFn) -> tuple[Any, Any]:
    """The two tokenizers of a file, with the same settings."""
    pair = draw(PAIRS)
    mine, reference = copy(ours(*pair)), copy(theirs(*pair))
    values = {
        "padding_side": draw(SIDES),
        "truncation_side": draw(SIDES),
        "model_max_length": draw(st.sampled_from([int(1e30), 9])),
        "model_input_names": draw(st.sampled_from([["input_ids", "attention_mask"], ["input_ids"]])),
    }
    for tokenizer in (mine, reference):
        for name, value in values.items():
            setattr(tokenizer, name, value)
    return mine, reference


@settings(max_examples=200)
@given(
    both(),
    texts | st.lists(texts, max_size=4) | IDS | st.lists(IDS, min_size=1, max_size=3),
    arguments(**LENGTHS, **RETURNS),
)
def test_calls(pair: tuple[Any, Any], text: Any, options: dict[str, Any]) -> None:
    mine, reference = pair
    same(lambda: mine(text, **options), lambda: reference(text, **options))


@given(both(), texts | st.lists(texts, min_size=1, max_size=3) | IDS, arguments(**LENGTHS))
def test_encode(pair: tuple[Any, Any], text: Any, options: dict[str, Any]) -> None:
    mine, reference = pair
    same(
        lambda: {"input_ids": mine.encode(text, **options)},
        lambda: {"input_ids": reference.encode(text, **options)},
    )


@settings(max_examples=100)
@given(both(), IDS, arguments(**LENGTHS, **RETURNS, prepend_batch_axis=st.booleans()))
def test_prepare_for_model(pair: tuple[Any, Any], ids: list[int], options: dict[str, Any]) -> None:
    mine, reference = pair
    if options.get("return_length") and options.get("return_tensors"):
        options["prepend_batch_axis"] = True  # theirs makes no array of one number
    same(
        lambda: mine.prepare_for_model(list(ids), **options), lambda: reference.prepare_for_model(list(ids), **options)
    )


@st.composite
def encodings(draw: st.DrawFn) -> Any:
    """The result of a call: for one text, for several, or a list of results for one text each."""

    def one() -> dict[str, Any]:
        ids = draw(IDS.filter(len))
        row: dict[str, Any] = {"input_ids": ids}
        if masked:
            row["attention_mask"] = [1] * len(ids)
        if special:
            row["special_tokens_mask"] = [0] * len(ids)
        return row

    masked, special = draw(st.booleans()), draw(st.booleans())
    rows = [one() for _ in range(draw(st.integers(1, 4)))]
    form = draw(st.sampled_from(["one", "list", "batch"]))
    if form == "one":
        return rows[0]
    return rows if form == "list" else {name: [row[name] for row in rows] for name in rows[0]}


@settings(max_examples=100)
@given(
    both(),
    encodings(),
    arguments(
        padding=PADDINGS,
        max_length=LIMITS,
        pad_to_multiple_of=MULTIPLES,
        padding_side=st.none() | SIDES,
        return_attention_mask=st.sampled_from([None, True]),
        return_tensors=TENSORS,
    ),
)
def test_pad(pair: tuple[Any, Any], encoding: Any, options: dict[str, Any]) -> None:
    """transformers' class changes its argument, and may drop a mask that was not requested."""
    mine, reference = pair
    options["return_attention_mask"] = True
    theirs_to_change = deepcopy(encoding)
    before = deepcopy(encoding)
    same(lambda: mine.pad(encoding, **options), lambda: reference.pad(theirs_to_change, **options))
    assert encoding == before


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_pad_takes_arrays_of_one_text_or_several(kind: Any) -> None:
    encoding = ours("v3").pad(
        {"input_ids": kind([[1, 5], [1, 6]]), "attention_mask": kind([[0, 1], [1, 1]])}, pad_to_multiple_of=3
    )
    assert type(encoding.input_ids) is type(kind([1]))
    assert encoding.input_ids.tolist() == [[0, 1, 5], [0, 1, 6]]
    assert encoding.attention_mask.tolist() == [[0, 0, 1], [0, 1, 1]]
    assert ours("v3").pad({"input_ids": kind([1, 5])}, pad_to_multiple_of=3).input_ids.tolist() == [0, 1, 5]
    assert ours("v3").pad([{"input_ids": kind([1, 5])}, {"input_ids": kind([1])}]).input_ids.tolist() == [
        [1, 5],
        [0, 1],
    ]


@pytest.mark.parametrize("tensors", ["np", "pt"])
def test_empty_rows_make_arrays_among_themselves_only(tensors: str) -> None:
    """transformers makes an array of shape [2, 0] of [[], [5]] with "pt": the token is lost."""
    tokenizer = ours("v3")
    assert tokenizer(["", ""], add_special_tokens=False, return_tensors=tensors).input_ids.shape == (2, 0)
    with pytest.raises(ValueError, match="rows of different lengths"):
        tokenizer(["", "Hello"], add_special_tokens=False, return_tensors=tensors)


def test_pad_pads_a_mask_that_is_there() -> None:
    """transformers' class leaves the mask shorter than the ids."""
    rows = {"input_ids": [[1, 5], [1]], "attention_mask": [[1, 1], [1]]}
    assert ours("v3").pad(rows, return_attention_mask=False).attention_mask == [[1, 1], [0, 1]]


@given(both(), IDS, st.integers(-2, 14), st.integers(0, 5), st.sampled_from(["longest_first", "do_not_truncate"]))
def test_truncate_sequences(pair: tuple[Any, Any], ids: list[int], remove: int, stride: int, how: str) -> None:
    mine, reference = pair
    options = {"num_tokens_to_remove": remove, "truncation_strategy": how, "stride": stride}
    assert mine.truncate_sequences(ids, **options) == reference.truncate_sequences(ids, **options)


@given(both(), IDS, st.booleans())
def test_special_tokens_mask(pair: tuple[Any, Any], ids: list[int], already: bool) -> None:
    mine, reference = pair
    expected = reference.get_special_tokens_mask(ids, already_has_special_tokens=already)
    assert mine.get_special_tokens_mask(ids, already_has_special_tokens=already) == expected
