"""inputs_embeds give transformers' outputs: arbitrary rows, rows of ids, prompts of generate()."""

from typing import Any

import numpy as np
import pytest
import torch
from documented_models import HEADS, VALUES, batches, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours
from mistral_portable.boundary.registry import candidates

EXECUTORS = [
    (candidate.name, dtype)
    for candidate in candidates()
    for dtype in ("float32", "bfloat16")
    if candidate.backend and candidate.availability.score and dtype in candidate.backend.capabilities.dtypes
]


def close(found: Any, expected: torch.Tensor, mask: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found)[mask == 1], expected.detach().numpy()[mask == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=10)
@given(data=st.data(), values=configs(), seed=st.integers(0, 2**31))
def test_a_padded_batch(name: str, data: st.DataObject, values: dict[str, Any], seed: int) -> None:
    mine, theirs = pair(name, values, seed)
    _, mask = data.draw(batches(values["vocab_size"], "left"))
    embeds = np.random.default_rng(seed).standard_normal((*mask.shape, values["hidden_size"])).astype(np.float32)
    got = mine(inputs_embeds=torch.tensor(embeds), attention_mask=mask, output_hidden_states=True)
    with torch.no_grad():
        wanted = theirs(
            inputs_embeds=torch.tensor(embeds),
            attention_mask=torch.tensor(mask),
            position_ids=torch.tensor(np.maximum(mask.cumsum(1) - 1, 0)),
            output_hidden_states=True,
        )
    assert type(got[0]) is torch.Tensor
    for found, expected in zip(got.hidden_states, wanted.hidden_states, strict=True):
        close(found, expected, mask)
    for key in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if key in wanted:
            close(got[key], wanted[key], mask if wanted[key].shape[:2] == mask.shape else np.ones(len(mask)))


@settings(max_examples=15)
@given(data=st.data(), values=configs(), seed=st.integers(0, 2**31), cuts=st.lists(st.integers(1, 9), min_size=2))
def test_rows_of_ids_are_the_ids(data: st.DataObject, values: dict[str, Any], seed: int, cuts: list[int]) -> None:
    """Successive calls with one cache, each with ids or with their embeddings, give the logits of the ids."""
    mine, _ = pair("MistralForCausalLM", values, seed)
    ids = np.random.default_rng(seed).integers(0, values["vocab_size"], (2, min(60, sum(cuts))))
    wanted = mine(ids).logits
    past: Any = None
    for part in np.split(ids, np.cumsum(cuts[:-1]), axis=1):
        if part.size:
            rows = mine.get_input_embeddings()(part)
            given_ = {"input_ids": part} if data.draw(st.booleans()) else {"inputs_embeds": rows}
            before = past.get_seq_length() if past else 0
            output = mine(**given_, past_key_values=past)
            past = output.past_key_values
            np.testing.assert_allclose(output.logits, wanted[:, before : past.get_seq_length()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "dtype"), EXECUTORS)
def test_every_executor(name: str, dtype: str) -> None:
    """A prompt as rows of the embedding table is continued like its ids."""
    model = ours.MistralForCausalLM.from_pretrained("tiny", backend=name, dtype=dtype)
    ids = ours.AutoTokenizer.from_pretrained("tiny")(["Once upon a time", "The"], padding=True, return_tensors="np")
    rows = model.get_input_embeddings()(ids["input_ids"])
    wanted = model.generate(**ids, max_new_tokens=12)[:, ids["input_ids"].shape[1] :]
    found = model.generate(inputs_embeds=rows, attention_mask=ids["attention_mask"], max_new_tokens=12)
    assert found.tolist() == wanted.tolist()


@settings(max_examples=10)
@given(values=configs(), seed=st.integers(0, 2**31), new=st.integers(1, 20))
def test_generate_from_rows_that_no_table_has(values: dict[str, Any], seed: int, new: int) -> None:
    mine, theirs = pair("MistralForCausalLM", values, seed)
    rows = np.random.default_rng(seed).standard_normal((2, 5, values["hidden_size"])).astype(np.float32)
    call: dict[str, Any] = {"max_new_tokens": new, "eos_token_id": -1, "pad_token_id": 0}
    wanted = theirs.generate(inputs_embeds=torch.tensor(rows), do_sample=False, **call).numpy()
    found = mine.generate(inputs_embeds=rows, **(call | {"eos_token_id": values["vocab_size"] + 9}))
    assert found.shape == wanted.shape
    for row in range(2):
        if len(differ := np.flatnonzero(found[row] != wanted[row])):  # only rounding may decide otherwise
            past = mine(inputs_embeds=rows[row : row + 1]).past_key_values
            begun = found[row : row + 1, : differ[0]]
            logits = (
                mine(begun, past_key_values=past).logits[0, -1]
                if begun.size
                else mine(inputs_embeds=rows[row : row + 1]).logits[0, -1]
            )
            assert abs(logits[found[row, differ[0]]] - logits[wanted[row, differ[0]]]) < 1e-5


def test_a_penalty_counts_no_token_of_a_prompt_of_rows() -> None:
    """Nor token 0, which stands for each of them."""
    mine, _ = pair("MistralForCausalLM", VALUES, 2)
    rows = np.random.default_rng(0).standard_normal((99, 3, 12))
    first = mine.generate(inputs_embeds=rows, max_new_tokens=1)
    assert 0 in first
    np.testing.assert_array_equal(mine.generate(inputs_embeds=rows, max_new_tokens=1, repetition_penalty=9.0), first)


ROWS = np.zeros((2, 6, 12), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs_embeds": ROWS[0]}, r"inputs_embeds has the shape \[6, 12\]: pass 3 axes"),
        ({"inputs_embeds": ROWS[:, :, :4]}, r"inputs_embeds is float32 \[2, 6, 4\]: pass floats \[batch, tokens, 12\]"),
        ({"inputs_embeds": ROWS[:, :0]}, "pass floats"),
        ({"inputs_embeds": ROWS.astype(np.int64)}, "inputs_embeds is int64"),
        ({"inputs_embeds": ROWS, "attention_mask": np.ones((2, 5))}, "attention_mask has the shape"),
    ],
)
def test_wrong_rows_are_one_line(arguments: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    for call in (mine, mine.generate):
        with pytest.raises(ValueError, match=message) as raised:
            call(**arguments)
        assert "\n" not in str(raised.value)


def test_unknown_ids_have_no_rows() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    assert mine.get_input_embeddings().weight.shape == (30, 12)
    with pytest.raises(ValueError, match=r"token ids are 0 \.\. 29, got 1 \.\. 30"):
        mine.get_input_embeddings()([[1, 30]])
