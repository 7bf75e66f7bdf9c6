"""generate() with rules for the next token, alone and together: transformers' tokens and scores."""

import doctest
import importlib
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from documented_models import VALUES, pair
from hypothesis import example, given, settings
from hypothesis import strategies as st

MODULES = ("checks", "generation", "generation_config", "logits_rules", "transition_scores", "without_effect")


@pytest.mark.parametrize("name", MODULES)
def test_the_worked_examples_hold(name: str) -> None:
    module = importlib.import_module(f"mistral_portable.transformers.{name}")
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


PROMPT = [[1, 2, 3, 1, 2], [4, 5, 6, 7, 4]]
ids = st.integers(0, 29)
some = st.lists(ids, min_size=1, max_size=4, unique=True)
words = st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=6)

RULES: dict[str, Any] = {
    "repetition_penalty": st.sampled_from([0.5, 1.3, 2.0]),
    "encoder_repetition_penalty": st.sampled_from([0.5, 1.3, 2.0]),
    "no_repeat_ngram_size": st.integers(1, 4),
    "encoder_no_repeat_ngram_size": st.integers(1, 3),
    "bad_words_ids": words,
    "sequence_bias": st.lists(st.tuples(words.map(lambda some: some[0]), st.floats(-9, 9)).map(list), min_size=1),
    "min_new_tokens": st.integers(1, 8),
    "min_length": st.integers(1, 12),
    "forced_bos_token_id": ids,
    "forced_eos_token_id": ids | some,
    "remove_invalid_values": st.just(True),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 5), st.sampled_from([0.9, 1.1, 2.0])),
    "suppress_tokens": some,
    "begin_suppress_tokens": some,
    "renormalize_logits": st.just(True),
}
FILTERS: dict[str, Any] = {
    "temperature": st.sampled_from([0.5, 1.0, 3.0]),
    "top_k": st.integers(0, 31),
    "top_p": st.floats(0.1, 1),
    "min_p": st.floats(0.01, 0.9),
    "typical_p": st.floats(0.1, 1),
    "epsilon_cutoff": st.floats(0.001, 0.3),
    "eta_cutoff": st.floats(0.001, 0.3),
}
CALL: dict[str, Any] = {
    "max_new_tokens": 9,
    "eos_token_id": [5, 11],
    "pad_token_id": 0,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
}


def both(seed: int, call: dict[str, Any], prompt: Any = PROMPT) -> tuple[Any, Any]:
    """Make a call with a prompt that is all text, of the model here and of transformers'."""
    mine, theirs = pair("MistralForCausalLM", VALUES, seed)
    rows = torch.tensor(prompt)
    return (
        mine.generate(rows, attention_mask=torch.ones_like(rows), **call),
        theirs.generate(rows, attention_mask=torch.ones_like(rows), **call),
    )


def same_scores(found: Any, wanted: Any, going: np.ndarray) -> None:
    """Scores of each step, for the rows that go on there."""
    for step, (some, other) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(some.numpy()[going[:, step]], other.numpy()[going[:, step]], rtol=1e-4, atol=1e-4)


def goes_on(answers: np.ndarray, ends: list[int]) -> Any:
    """For each row and step whether the row has not ended before."""
    ended = np.cumsum(np.isin(answers, ends), axis=1)
    return np.concatenate([np.zeros((len(answers), 1), int), ended[:, :-1]], axis=1) == 0


def agreeing(rules: dict[str, Any]) -> bool:
    """Whether rules may be kept together: else there are errors, and infinite logits in transformers."""
    forced = [rules.get(name, []) for name in ("forced_bos_token_id", "forced_eos_token_id")]
    never = {*rules.get("suppress_tokens", []), *rules.get("begin_suppress_tokens", [])}
    clash = any({*([one] if isinstance(one, int) else one)} & never for one in forced)
    return not (clash or {"remove_invalid_values", "exponential_decay_length_penalty"} <= rules.keys())


@settings(max_examples=40)  # any subset of 15 rules: each comes in most of them; 45 ms each
@given(rules=st.fixed_dictionaries({}, optional=RULES).filter(agreeing), seed=st.integers(0, 99))
def test_greedy_tokens_and_scores(rules: dict[str, Any], seed: int) -> None:
    found, wanted = both(seed, CALL | rules)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    going = goes_on(found.sequences.numpy()[:, 5:], CALL["eos_token_id"])
    same_scores(found.scores, wanted.scores, going)
    same_scores(found.logits, wanted.logits, going)
    plain = pair("MistralForCausalLM", VALUES, seed)[0].generate(torch.tensor(PROMPT), **_tokens_alone(CALL | rules))
    assert plain.tolist() == found.sequences.tolist()


def _tokens_alone(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if not name.startswith(("return_", "output_"))}


@settings(max_examples=40)  # any subset of 22 rules; 30 ms each
@example(rules={"top_p": 0.5, "forced_eos_token_id": [0, 1]}, seed=0)
@given(rules=st.fixed_dictionaries({}, optional=FILTERS | RULES).filter(agreeing), seed=st.integers(0, 99))
def test_what_is_drawn_from(rules: dict[str, Any], seed: int) -> None:
    """The scores of the first step, before tokens that are drawn differ."""
    call = CALL | {"do_sample": True, "max_new_tokens": 1} | rules
    found, wanted = both(seed, call)
    scores, expected = found.scores[0].numpy(), wanted.scores[0].numpy()
    edge = (scores == -np.inf) != (expected == -np.inf)
    # By rounding, a token may be beyond a filter's threshold; of two that tie there, either may be kept.
    assert edge.sum(axis=1).max() <= 2
    if not edge.any():
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=10)  # each runs the model 2 * 9 times
@given(rules=st.fixed_dictionaries({}, optional=FILTERS | RULES).filter(agreeing), seed=st.integers(0, 99))
def test_drawn_tokens_do_not_depend_on_how_they_are_asked_for(rules: dict[str, Any], seed: int) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, seed)
    call = CALL | {"do_sample": True, "seed": 3} | rules
    made = mine.generate(PROMPT, **call).sequences
    np.testing.assert_array_equal(mine.generate(PROMPT, **_tokens_alone(call)), made)


def test_a_prompt_of_one_token_may_be_followed_by_a_forced_one() -> None:
    for rules in ({"forced_bos_token_id": 7}, {"forced_bos_token_id": 7, "begin_suppress_tokens": [3, 9]}):
        found, wanted = both(1, CALL | rules, [[1]])
        assert found.sequences.tolist() == wanted.sequences.tolist()
        assert found.sequences[0, 1] == 7


@settings(max_examples=15)  # the model runs twice in each step
@given(scale=st.sampled_from([0.5, 1.5, 3.0]), seed=st.integers(0, 99), negative=st.booleans(), masked=st.booleans())
def test_guidance(scale: float, seed: int, negative: bool, masked: bool) -> None:
    call = CALL | {"guidance_scale": scale}
    if negative:
        call["negative_prompt_ids"] = torch.tensor([[8, 9, 10], [0, 12, 13]])
    if negative and masked:
        call["negative_prompt_attention_mask"] = torch.tensor([[1, 1, 1], [0, 1, 1]])
    found, wanted = both(seed, call)
    assert found.sequences.tolist() == wanted.sequences.tolist()
    same_scores(found.scores, wanted.scores, goes_on(found.sequences.numpy()[:, 5:], CALL["eos_token_id"]))


def test_rules_of_the_callers_own() -> None:
    """transformers' own objects, those of any other library, and functions, for all rows at once."""

    def odd(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        assert input_ids.shape[0] == scores.shape[0] == 2
        return torch.where(torch.arange(30) % 2 == input_ids.shape[1] % 2, scores, -torch.inf)

    own = transformers.LogitsProcessorList([odd, transformers.RepetitionPenaltyLogitsProcessor(2.0)])
    found, wanted = both(4, CALL | {"logits_processor": own, "no_repeat_ngram_size": 2})
    assert found.sequences.tolist() == wanted.sequences.tolist()
    same_scores(found.scores, wanted.scores, goes_on(found.sequences.numpy()[:, 5:], CALL["eos_token_id"]))

    def allowed(row: int, text: torch.Tensor) -> list[int]:
        assert text.tolist()[:5] == PROMPT[row]
        return [row, 20 + len(text) % 3, 25]

    found, wanted = both(4, CALL | {"prefix_allowed_tokens_fn": allowed, "suppress_tokens": [25]})
    assert found.sequences.tolist() == wanted.sequences.tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"logits_processor": [lambda ids, scores: scores[:, :3]]}, r"logits_processor has returned float32 \[2, 3\]"),
        ({"prefix_allowed_tokens_fn": lambda row, text: []}, "prefix_allowed_tokens_fn has returned no ids"),
        ({"prefix_allowed_tokens_fn": lambda row, text: [30]}, r"token id 30 must be in 0\.\.29"),
        ({"bad_words_ids": [[1], [99]]}, r"bad_words_ids: token id 99 must be in 0\.\.29"),
        ({"suppress_tokens": list(range(30))}, "suppress_tokens.* has left no token to sample"),
        ({"guidance_scale": 2.0, "num_beams": 2}, "guidance_scale: beams have one prompt each"),
        ({"assistant_model": object()}, "assistant_model=.*: pass a MistralForCausalLM of this package"),
        ({"negative_prompt_ids": [[1]], "guidance_scale": 2.0}, "negative_prompt_ids have 1 rows"),
    ],
)
def test_rules_that_cannot_be_kept_are_one_line(call: dict[str, Any], message: str) -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)
    with pytest.raises(ValueError, match=message) as caught:
        mine.generate(PROMPT, **call)
    assert "\n" not in str(caught.value)
    assert mine.decoder.manager.lanes == ()


def test_what_a_function_of_the_caller_raises_is_raised() -> None:
    mine, _ = pair("MistralForCausalLM", VALUES, 0)

    def fails(*_: Any) -> None:
        raise KeyError("mine")

    for name in ("logits_processor", "prefix_allowed_tokens_fn", "stopping_criteria"):
        with pytest.raises(KeyError, match="mine"):
            mine.generate(PROMPT, **{name: fails})
    assert mine.decoder.manager.lanes == ()
