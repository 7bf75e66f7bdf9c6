"""The sampler's shortcuts change no bit: all rows, draws and log-probabilities are those of the rules as they are told.

`plain` applies each rule to the whole vocabulary, as processors.py words it. The two share NumPy's exp and sums only.
"""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.sampling import Sampled, Sampler, SamplingParams, TokenLogprob
from mistral_portable.sampling.processors import Row

BLOCK = 256  # of probabilities whose sums decide in which one a draw falls: part of what a seed means


def plain(row: Row, params: SamplingParams, prompt: list[int], generated: list[int], u: float) -> Sampled:
    raw, row = row, row.copy()
    for token, bias in params.logit_bias.items():
        row[token] += np.float32(bias)
    for token in {*prompt, *generated} if params.repetition_penalty != 1 else ():
        down = row[token] * np.float32(params.repetition_penalty)
        row[token] = down if row[token] < 0 else row[token] / np.float32(params.repetition_penalty)
    for token in set(generated):
        row[token] -= np.float32(generated.count(token) * params.frequency_penalty + params.presence_penalty)
    token = drawn(row, params, u) if params.temperature else int(np.argmax(row))
    if params.logprobs is None:
        return Sampled(token)
    logprobs = logs(raw)
    ranking = sorted(range(row.size), key=lambda token: (-raw[token], token))[: params.logprobs]
    top = tuple(TokenLogprob(token, float(logprobs[token])) for token in ranking)
    return Sampled(token, float(logprobs[token]), top)


def drawn(row: Row, params: SamplingParams, u: float) -> int:
    if params.temperature != 1:
        with np.errstate(over="ignore"):
            row = ((row.astype(np.float64) - row.max()) / params.temperature).astype(np.float32)
    left = np.flatnonzero(row > -np.inf)
    if 0 < params.top_k < left.size:
        left = left[row[left] >= np.sort(row[left])[-params.top_k]]
    if params.top_p < 1:
        probabilities = softmax(row[left])
        order = np.argsort(-row[left], kind="stable")
        # Of the tokens below (1 - p) / n none is needed, and where rounding says otherwise none is taken.
        order = order[probabilities[order] >= (1 - params.top_p) / left.size]
        sums = np.cumsum(probabilities[order])
        left = np.sort(left[order[: int(np.searchsorted(sums, params.top_p)) + 1]])
    if params.min_p:
        left = left[row[left] >= np.float64(row[left].max()) + math.log(params.min_p)]
    if params.typical_p < 1:
        surprise = -logs(row[left])
        probabilities = np.exp(-surprise)
        distance = np.abs(surprise - np.sum(probabilities * surprise))
        nearest = np.argsort(distance)
        sums = np.cumsum(probabilities[nearest])
        left = left[distance <= distance[nearest[np.searchsorted(sums, params.typical_p * sums[-1])]]]
    probabilities = softmax(row[left])
    blocks = [probabilities[start : start + BLOCK] for start in range(0, left.size, BLOCK)]
    ends = np.cumsum([block.sum() for block in blocks])
    block = int(np.searchsorted(ends, u * ends[-1], side="right"))
    inside = np.cumsum(blocks[block]) + (ends[block - 1] if block else 0)
    place = min(int(np.searchsorted(inside, u * ends[-1], side="right")), int(np.flatnonzero(blocks[block])[-1]))
    return int(left[block * BLOCK + place])


def softmax(logits: Row) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights.sum()
    return weights


def logs(logits: Row) -> NDArray[np.float64]:
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


@st.composite
def rows(draw: st.DrawFn, size: int) -> Row:
    """Rows of one scale or another; some coarse, so with ties, as from bfloat16; some with banned tokens.

    Far below one high logit, `temperature` rounds differences of the others away: they tie after it.
    """
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    row = random.standard_normal(size) * draw(st.sampled_from([0, 1e-6, 1e-3, 1, 4, 60]))
    row = np.round(row, draw(st.sampled_from([0, 1, 9])))
    row[random.random(size) < draw(st.sampled_from([0, 0.3, 0.99]))] = -np.inf
    row[draw(st.integers(0, size - 1))] = draw(st.sampled_from([-5, 0, 5, 1000]))
    return row.astype(np.float32)


settings: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**32)},
    optional={
        "temperature": st.sampled_from([0, 1e-40, 0.3, 0.7, 1.5, 100]),
        "top_k": st.integers(0, 60) | st.sampled_from([300, 2000]),
        "top_p": st.sampled_from([1e-6, 0.5, 0.9, 0.999, 1 - 1e-12]),
        "min_p": st.floats(0, 1),
        "typical_p": st.floats(0.01, 1),
        "repetition_penalty": st.sampled_from([0.5, 1.1, 2]),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.just(0), st.sampled_from([-3.5, 2.25, 50])),
        "logprobs": st.integers(0, 1),
    },
)


@pytest.mark.parametrize("size", [1, 5, 300, 6000, 20000])
@given(data=st.data())
def test_every_choice_is_that_of_the_plain_rules(size: int, data: st.DataObject) -> None:
    params = SamplingParams(**{"temperature": 1, **data.draw(settings)})
    prompt = data.draw(st.lists(st.integers(0, size - 1), max_size=5))
    sampler, random = Sampler(params, prompt_tokens=prompt), np.random.Generator(np.random.PCG64(params.seed))
    generated: list[int] = []
    for _ in range(4):
        row = data.draw(rows(size))
        sampled = sampler.sample(row)
        u = random.random() if params.temperature else 0
        assert sampled == plain(row, params, prompt, generated, u)
        generated.append(sampled.token)
