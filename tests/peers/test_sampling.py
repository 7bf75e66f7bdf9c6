"""Every rule, and their order, against the logits processors of transformers.

transformers works in float32, this package decides in float64. Where a draw lies within EDGE of the decision of a
rule (a cumulative sum at p, a probability at the threshold), either answer is right, and only that draw or that
token is left out; everything else must be the same set of tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.sampling import Sampler, SamplingParams, bans, processors
from mistral_portable.sampling.processors import Row

EDGE = 1e-5  # float32 sums of up to 300 terms are good to a few 1e-6

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.01, 0.99)


@st.composite
def logits_rows(draw: st.DrawFn) -> Row:
    """Rows from flat to peaked, of 1 to 300 tokens; some coarse (many ties, as from bfloat16), some masked."""
    random = np.random.default_rng(draw(seeds))
    row = random.normal(size=draw(st.integers(1, 300))) * draw(st.sampled_from([0.1, 1.0, 3.0, 10.0]))
    if draw(st.booleans()):
        row = np.round(row * 4) / 4
    if draw(st.booleans()):
        row[1:][random.random(row.size - 1) < 0.3] = -np.inf
    return row.astype(np.float32)


def theirs(processor: Any, row: Row, tokens: Sequence[int] = ()) -> Row:
    scores = processor(torch.tensor([list(tokens)], dtype=torch.long), torch.from_numpy(row.copy())[None])
    result: Row = scores[0].numpy()
    return result


def kept(row: Row) -> NDArray[np.int64]:
    return np.flatnonzero(row > -np.inf)


def masked(row: Row, keep: Callable[[Row], NDArray[np.int64] | None]) -> Row:
    """The row with -inf where a rule of this package, which sees its finite logits, does not keep a token."""
    tokens = kept(row)
    positions = keep(row[tokens])
    tokens = tokens if positions is None else tokens[positions]
    out = np.full_like(row, -np.inf)
    out[tokens] = row[tokens]
    return out


@given(row=logits_rows(), penalty=st.floats(0.1, 10), data=st.data())
def test_repetition_penalty(row: Row, penalty: float, data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(0, row.size - 1), min_size=1))
    expected = theirs(transformers.RepetitionPenaltyLogitsProcessor(penalty), row, tokens)
    processors.repetition_penalty(row, np.unique(tokens), penalty)
    np.testing.assert_allclose(row, expected, rtol=1e-6)


@given(row=logits_rows(), data=st.data())
def test_logit_bias(row: Row, data: st.DataObject) -> None:
    values = st.floats(-100, 100, width=32) | st.just(-np.inf)
    bias = data.draw(st.dictionaries(st.integers(0, row.size - 1), values, min_size=1))
    biases: Any = {(token,): value for token, value in bias.items()}  # its annotation names the JSON form only
    expected = theirs(transformers.SequenceBiasLogitsProcessor(biases), row, [0])
    processors.logit_bias(row, np.array(list(bias)), np.array(list(bias.values()), np.float32))
    np.testing.assert_array_equal(row, expected)


short_texts = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@given(text=short_texts, size=st.integers(1, 4))
def test_repeated_ngrams(text: list[int], size: int) -> None:
    row = np.zeros(4, np.float32)
    expected = theirs(transformers.NoRepeatNGramLogitsProcessor(size), row, text)
    row[bans.repeating(np.array(text), size)] = -np.inf
    np.testing.assert_array_equal(row, expected)


@given(text=short_texts, words=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=4))
def test_bad_words(text: list[int], words: list[list[int]]) -> None:
    row = np.zeros(4, np.float32)
    expected = theirs(transformers.NoBadWordsLogitsProcessor(words, eos_token_id=3), row, text)
    row[bans.Words(words).completing(np.array(text))] = -np.inf
    np.testing.assert_array_equal(row, expected)


@given(prompt=short_texts, least=st.integers(1, 4), ends=st.lists(st.integers(0, 2), min_size=1, max_size=2))
def test_min_tokens(prompt: list[int], least: int, ends: list[int]) -> None:
    params = SamplingParams(temperature=1, min_tokens=least, seed=0)
    sampler, text = Sampler(params, prompt_tokens=prompt, end_tokens=ends), list(prompt)
    rule = transformers.MinNewTokensLengthLogitsProcessor(len(prompt), least, ends, device="cpu")
    for _ in range(6):
        row = np.zeros(4, np.float32)
        np.testing.assert_array_equal(sampler.distribution(row)[0], kept(theirs(rule, row, text)))
        text.append(sampler.sample(row).token)


@given(row=logits_rows(), value=st.floats(0.01, 10))
def test_temperature(row: Row, value: float) -> None:
    # Ours is shifted to a maximum of 0; a softmax sees no difference. The 1e-6 is relative to the largest logit.
    expected = theirs(transformers.TemperatureLogitsWarper(value), row)
    finite = kept(expected)
    scale = np.abs(expected[finite]).max()
    ours = processors.temperature(row, value)
    np.testing.assert_array_equal(kept(ours), finite)
    np.testing.assert_allclose(ours[finite], (expected - expected.max())[finite], atol=1e-6 * scale + 1e-12)


@given(row=logits_rows(), k=st.integers(1, 320))
def test_top_k(row: Row, k: int) -> None:
    ours = masked(row, lambda left: processors.top_k(left, k))
    np.testing.assert_array_equal(ours, theirs(transformers.TopKLogitsWarper(k), row))


@given(row=logits_rows(), p=shares)
def test_top_p(row: Row, p: float) -> None:
    cumulative = np.cumsum(np.sort(processors.softmax(row))[::-1])
    assume(np.abs(cumulative[:-1] - p).min(initial=1) > EDGE)
    expected = theirs(transformers.TopPLogitsWarper(p), row)
    ours = masked(row, lambda left: processors.top_p(left, p))
    # Where the last kept logit is one of several equal ones, transformers takes those that its sort leaves
    # last, and this package the lowest ids: the same number of them, and the same values.
    np.testing.assert_array_equal(np.sort(ours), np.sort(expected))
    last = ours[kept(ours)].min()
    np.testing.assert_array_equal(
        kept(np.where(row == last, -np.inf, ours)), kept(np.where(row == last, -np.inf, expected))
    )
    if np.count_nonzero(row == last) == 1:
        np.testing.assert_array_equal(ours, expected)


@given(row=logits_rows(), p=st.floats(0.001, 1))
def test_min_p(row: Row, p: float) -> None:
    probabilities = processors.softmax(row)
    clear = np.abs(probabilities / probabilities.max() - p) > EDGE * p
    expected = theirs(transformers.MinPLogitsWarper(p), row)
    np.testing.assert_array_equal(masked(row, lambda left: processors.min_p(left, p))[clear], expected[clear])


@given(row=logits_rows(), p=shares)
def test_typical_p(row: Row, p: float) -> None:
    surprise = -processors.log_softmax(row[kept(row)])
    probabilities = np.exp(-surprise)
    distance = np.abs(surprise - np.sum(probabilities * surprise))
    order = np.argsort(distance)
    # A cumulative sum matters only where the distance grows behind it: equal distances are kept together.
    grows = np.diff(distance[order]) > EDGE
    cumulative = np.cumsum(probabilities[order])[:-1]
    assume(np.abs(cumulative[grows] - p).min(initial=1) > EDGE)
    expected = theirs(transformers.TypicalLogitsWarper(p), row)
    ours = masked(row, lambda left: processors.typical_p(left, p))
    threshold = distance[order][np.searchsorted(np.cumsum(probabilities[order]), p)]
    clear = kept(row)[np.abs(distance - threshold) > EDGE]
    np.testing.assert_array_equal(ours[clear], expected[clear])
    # Each side keeps at least one of the tokens at the threshold itself.
    assert kept(ours).size > 0
    assert kept(expected).size > 0


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.MistralForCausalLM(config).eval()


@given(
    prompt=st.lists(st.integers(0, 299), min_size=1, max_size=10),
    settings=st.fixed_dictionaries(
        {},
        optional={
            "repetition_penalty": st.floats(0.5, 2),
            "temperature": st.floats(0.1, 3),
            "top_k": st.integers(1, 60),
            "top_p": shares,
            "min_p": st.floats(0.001, 0.5),
            "typical_p": shares,
        },
    ),
    bias=st.dictionaries(st.integers(0, 299), st.floats(-5, 5, width=32), max_size=3),
)
def test_generate_samples_from_the_same_distribution(
    model: Any, prompt: list[int], settings: dict[str, Any], bias: dict[int, float]
) -> None:
    """`generate` itself, a few tokens long: all rules at once, in its order, on the logits of a model."""
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=True, max_new_tokens=2,
        output_logits=True, output_scores=True, return_dict_in_generate=True, **settings,
        **({"sequence_bias": {(token,): value for token, value in bias.items()}} if bias else {}),
    )  # fmt: skip
    params = SamplingParams(logit_bias=bias, **settings)
    sequence = output.sequences[0].tolist()
    for step, (logits, scores) in enumerate(zip(output.logits, output.scores, strict=True)):
        row, expected = logits[0].numpy(), scores[0].numpy()
        before = sequence[: len(prompt) + step]
        assume(is_clear(row, params, before))
        tokens, probabilities = Sampler(params, prompt_tokens=before).distribution(row)
        np.testing.assert_array_equal(tokens, kept(expected))
        np.testing.assert_allclose(probabilities, processors.softmax(expected[tokens]), rtol=1e-4)


def is_clear(row: Row, params: SamplingParams, before: list[int]) -> bool:
    """Whether the same tokens are left when each threshold, or every logit, moves by EDGE."""

    def left(row: Row, **nudge: Any) -> list[int]:
        sampler = Sampler(replace(params, **nudge), prompt_tokens=before)
        return list(sampler.distribution(row)[0])

    noise = np.random.default_rng(0).uniform(-EDGE, EDGE, row.size).astype(np.float32)
    thresholds = {"top_p": params.top_p, "min_p": params.min_p, "typical_p": params.typical_p}
    others = [left(row + noise)] + [
        left(row, **{name: value * (1 + sign * EDGE)})
        for name, value in thresholds.items()
        for sign in (-1, 1)
        if value < 1
    ]
    return all(other == left(row) for other in others)
