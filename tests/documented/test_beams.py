"""Beam search gives transformers' texts and scores, and each prompt of a batch gets what it gets alone."""

from typing import Any

import numpy as np
import pytest
import torch
from documented_models import VALUES, batches, configs, pair
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable import transformers as ours
from mistral_portable.boundary.registry import candidates

beams = st.fixed_dictionaries(
    {"num_beams": st.integers(2, 4), "max_new_tokens": st.integers(1, 12)},
    optional={
        "early_stopping": st.sampled_from([True, False, "never"]),
        "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
        "repetition_penalty": st.just(1.5),
        "no_repeat_ngram_size": st.just(2),
        "bad_words_ids": st.just([[1], [2, 3]]),
        "min_new_tokens": st.integers(1, 5),
        "renormalize_logits": st.just(True),
    },
)


def reached(call: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A call with end tokens, and padding that is none of them."""
    return call | {"eos_token_id": [values["vocab_size"] - 1, values["vocab_size"] - 2], "pad_token_id": 1}


def wide(values: dict[str, Any]) -> dict[str, Any]:
    """A config whose vocabulary holds more tokens than a step has candidates, 3 for each of 4 beams."""
    return values | {"vocab_size": values["vocab_size"] + 20}


@settings(max_examples=40)  # two searches each, 90 ms; windows, padding and all rules of stopping come several times
@given(data=st.data(), values=configs().map(wide), seed=st.integers(0, 2**31), call=beams)
def test_texts_and_scores(data: st.DataObject, values: dict[str, Any], seed: int, call: dict[str, Any]) -> None:
    mine, theirs = pair("MistralForCausalLM", values, seed)
    ids, mask = (torch.tensor(array) for array in data.draw(batches(values["vocab_size"], "left")))
    if "no_repeat_ngram_size" in call:  # there, padding is part of n-grams
        mask = torch.ones_like(mask)
    call = reached(call, values) | {"num_return_sequences": data.draw(st.integers(1, call["num_beams"]))}
    call |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    wanted = theirs.generate(ids, attention_mask=mask, do_sample=False, **call)
    found = mine.generate(ids, attention_mask=mask, **call)
    if not equal(found.sequences, wanted.sequences):
        assert by_rounding(mine, ids, mask, call, wanted.sequences)
        return
    np.testing.assert_allclose(found.sequences_scores, wanted.sequences_scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.beam_indices, wanted.beam_indices)
    again = mine.compute_transition_scores(found.sequences, found.scores, found.beam_indices)
    expected = theirs.compute_transition_scores(wanted.sequences, wanted.scores, wanted.beam_indices)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-4)
    alone = {name: value for name, value in call.items() if not name.startswith(("return_", "output_"))}
    plain = mine.generate(ids, attention_mask=mask, **alone)
    np.testing.assert_array_equal(plain, found.sequences)


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.shape == wanted.shape and bool((found == wanted).all())


def by_rounding(mine: Any, ids: torch.Tensor, mask: torch.Tensor, call: dict[str, Any], wanted: torch.Tensor) -> bool:
    """Whether these texts are found where logits differ by a few units of rounding: two candidates were that near."""
    for seed in range(40):
        random = torch.Generator().manual_seed(seed)

        def rounded(texts: torch.Tensor, scores: torch.Tensor, random: torch.Generator = random) -> torch.Tensor:
            noise = torch.randn(scores.shape, generator=random)
            if (place := texts.shape[1]) < wanted.shape[1]:  # else of 25 tokens that tie the same two hardly ever came
                for own, tokens in zip(noise.chunk(len(ids)), wanted[:, place].chunk(len(ids)), strict=True):
                    own[:, tokens] += 3
            return scores + 1e-5 * noise

        if equal(mine.generate(ids, attention_mask=mask, logits_processor=[rounded], **call).sequences, wanted):
            return True
    return False


@settings(max_examples=15)  # a search for each row
@given(data=st.data(), values=configs().map(wide), seed=st.integers(0, 2**31), call=beams, draws=st.booleans())
def test_rows_are_as_if_alone(
    data: st.DataObject, values: dict[str, Any], seed: int, call: dict[str, Any], draws: bool
) -> None:
    mine, _ = pair("MistralForCausalLM", values, seed, "float64")  # or rounding would decide at times
    ids, mask = data.draw(batches(values["vocab_size"], "right"))
    call = reached(call, values) | {"do_sample": draws, "top_k": 9}
    together = mine.generate(ids, attention_mask=mask, seed=seed, **call)[:, ids.shape[1] :]
    for row in range(len(ids)):
        own = ids[row : row + 1, mask[row] == 1]
        alone = mine.generate(own, attention_mask=np.ones_like(own), seed=seed + row, **call)[0, own.shape[1] :]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert (together[row, len(alone) :] == 1).all()
    assert mine.decoder.manager.lanes == ()


def test_drawn_beams_are_drawn_without_replacement() -> None:
    """One step: four candidates of the 30 tokens, of which the two likeliest are kept."""
    mine, _ = pair("MistralForCausalLM", VALUES, 1)
    rows = 2000
    ids = np.repeat([[3, 4]], rows, 0)
    call: dict[str, Any] = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 1, "do_sample": True}
    made = mine.generate(ids, attention_mask=np.ones_like(ids), seed=0, eos_token_id=29, top_k=0, **call)[:, -1]
    p = np.exp(mine([[3, 4]]).logits[0, -1].astype(float))
    random = np.random.default_rng(1)
    drawn = [sorted(random.choice(30, 4, replace=False, p=p / p.sum()), key=lambda t: -p[t])[:2] for _ in range(rows)]
    found, wanted = (np.bincount(np.ravel(tokens), minlength=30) / rows for tokens in (made, drawn))
    assert np.abs(found - wanted).max() < 0.06  # four standard deviations of the difference of two means of 2000


def test_more_prompts_than_lanes() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 3, "float64")
    ids = np.random.default_rng(0).integers(2, 30, (130, 4))
    call: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4, "eos_token_id": 7, "pad_token_id": 0}
    found = mine.generate(ids, **call)
    for row in (0, 63, 64, 129):
        alone = mine.generate(ids[row : row + 1], **call)[0]
        assert found[row, : len(alone)].tolist() == alone.tolist()
    assert mine.decoder.manager.lanes == ()


def test_criteria_and_rules_see_all_beams() -> None:
    mine, theirs = pair("MistralForCausalLM", VALUES, 5)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def rule(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert scores.shape[0] == 6
        return scores + torch.where(torch.arange(30) == input_ids[:, -1:], -3.0, 0.0)

    def ends(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
        return (input_ids[:, -2:] > 20).all(dim=-1)

    def allowed(row: int, text: torch.Tensor) -> list[int]:
        return list(range(10 + row, 28))

    call: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 9, "eos_token_id": 29, "pad_token_id": 1}
    call |= {"logits_processor": [rule], "prefix_allowed_tokens_fn": allowed}
    mask = torch.ones_like(ids)
    their = {"stopping_criteria": ours.StoppingCriteriaList([ends])}
    wanted = theirs.generate(ids, attention_mask=mask, **call, **their)
    found = mine.generate(ids, attention_mask=mask, **call, **their)
    assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize("name", [one.name for one in candidates() if one.backend and one.availability.score])
def test_every_executor(name: str) -> None:
    """Lanes fork alike, whatever a page is; and a cache goes in and out."""
    model = ours.MistralForCausalLM.from_pretrained("tiny", backend=name, dtype="float32")
    ids = ours.AutoTokenizer.from_pretrained("tiny")("Once upon a time", return_tensors="np")["input_ids"]
    call: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 12, "return_dict_in_generate": True}
    found = model.generate(ids, **call, output_scores=True)
    reference = ours.MistralForCausalLM.from_pretrained("tiny", backend="reference", dtype="float32")
    wanted = reference.generate(ids, **call, output_scores=True)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    # In float32, which each executor sums up in an order of its own.
    np.testing.assert_allclose(found.sequences_scores, wanted.sequences_scores, rtol=1e-3)
    past = model(ids[:, :-1]).past_key_values
    again = model.generate(ids, past_key_values=past, **call)
    assert again.sequences.tolist() == found.sequences.tolist()
    assert past.get_seq_length() == ids.shape[1] - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than num_beams=2"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping='soon': pass True, False or 'never'"),
        ({"num_beams": 2, "length_penalty": "long"}, "length_penalty='long' must be a number"),
        ({"num_beams": 200}, "num_beams=200 must be from 1 to 128"),
        ({"num_beams": 2, "num_beam_groups": 2}, "num_beam_groups=2 is not supported: transformers 5 has it as code"),
        ({"num_beams": 2, "streamer": ours.TextStreamer(None)}, "streamer: beams have no text before they end"),
    ],
)
def test_wrong_arguments_are_one_line(call: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    with pytest.raises(ValueError, match=message) as caught:
        mine.generate([[1, 2]], **call)
    assert "\n" not in str(caught.value)
    assert mine.decoder.manager.lanes == ()
