"""Rules of llama.cpp, their order and their memory against plain loops: the same distribution before every token, and
the token that its number draws. Golden cases are in test_llama_cases.py, transformers' rules in test_exactly.py."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.errors import InputError
from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.sampling.dry import Breakers, repeats
from mistral_portable.sampling.params import SAMPLERS

VOCAB = 6
PIECES = [b"a", b"b:", b"c", b"\n", b"\nb", b""]
NO_BREAKERS: dict[str, Any] = {"dry_sequence_breakers": ()}
EDGE = 1e-6  # of a probability or a logit at a bound: either choice is right, as sums are ordered differently

ids = st.integers(0, VOCAB - 1)


def penalties_before_temperature(order: list[str]) -> tuple[str, ...]:
    one, other = sorted(map(order.index, ("penalties", "temperature")))
    order[one], order[other] = "penalties", "temperature"
    return tuple(order)


orders = st.permutations(SAMPLERS).map(penalties_before_temperature)
settings: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.5, 1.0, 3.0]), "samplers": orders},
    optional={
        "top_k": st.integers(1, 7),
        "top_p": st.sampled_from([0.3, 0.9]),
        "min_p": st.sampled_from([0.1, 0.5]),
        "repetition_penalty": st.sampled_from([0.7, 1.5]),
        "frequency_penalty": st.sampled_from([-0.5, 0.75]),
        "presence_penalty": st.sampled_from([0.5]),
        "repeat_last_n": st.integers(-1, 6),
        "top_n_sigma": st.sampled_from([0.5, 1.0, 2.0]),
        "xtc_probability": st.sampled_from([0.5, 1.0]),
        "xtc_threshold": st.sampled_from([0.0, 0.1, 0.25]),
        "dry_multiplier": st.sampled_from([0.5, 2.0]),
        "dry_base": st.sampled_from([1.0, 1.75, 4.0]),
        "dry_allowed_length": st.integers(0, 3),
        "dry_penalty_last_n": st.integers(-1, 12),
        "dry_sequence_breakers": st.sampled_from([(), (":",), ("\n", ":"), ("\nbc", "ca")]),
        "dynatemp_range": st.sampled_from([0.25, 1.0]),
        "dynatemp_exponent": st.sampled_from([0.5, 1.0, 3.0]),
        "mirostat": st.just(2),
        "mirostat_tau": st.sampled_from([1.0, 3.0]),
        "mirostat_eta": st.sampled_from([0.1, 0.5]),
    },
)


class NearEdge(Exception):
    """A number lies where rounding decides."""


def softmax(logits: dict[int, float]) -> dict[int, float]:
    high = max(logits.values())
    weights = {token: math.exp(logit - high) for token, logit in logits.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def at_least(value: float, bound: float) -> bool:
    if abs(value - bound) < EDGE:
        raise NearEdge
    return value >= bound


def ranked(logits: dict[int, float]) -> list[int]:
    order = sorted(logits, key=lambda token: (-logits[token], token))
    if any(logits[one] - logits[other] < EDGE for one, other in pairwise(order)):
        raise NearEdge
    return order


def behind_breaker(text: Sequence[int], breakers: Sequence[str]) -> int:
    """How many tokens at the end of a text hold no end of a breaker."""
    for count in range(len(text)):
        start = len(b"".join(PIECES[token] for token in text[: len(text) - count - 1]))
        end = start + len(PIECES[text[len(text) - count - 1]])
        whole = b"".join(PIECES[token] for token in text)[:end]
        for breaker in breakers:
            if any(whole[:stop].endswith(breaker.encode()) for stop in range(start + 1, end + 1)):
                return count
    return len(text)


def dry(p: SamplingParams, text: list[int]) -> dict[int, float]:
    """The penalty of each token that would lengthen a repetition."""
    most = behind_breaker(text, p.dry_sequence_breakers)
    if p.dry_penalty_last_n >= 0:
        text = text[len(text) - p.dry_penalty_last_n :] if p.dry_penalty_last_n < len(text) else text
    lengths: dict[int, int] = {}
    for end in range(1, len(text)):
        length = 0
        while length < min(end, most) and text[end - 1 - length] == text[-1 - length]:
            length += 1
        lengths[text[end]] = max(lengths.get(text[end], 0), length)
    return {
        token: p.dry_multiplier * p.dry_base ** (length - p.dry_allowed_length)
        for token, length in lengths.items()
        if length >= p.dry_allowed_length
        and not any(breaker.encode() in PIECES[token] for breaker in p.dry_sequence_breakers)
    }


def penalized(p: SamplingParams, logits: dict[int, float], text: list[int], answer: int) -> dict[int, float]:
    count = len(text) if p.repeat_last_n < 0 else min(len(text), p.repeat_last_n)
    last = text[len(text) - count :]
    said = last[max(0, count - answer) :]
    out = {}
    for token, logit in logits.items():
        if token in last:
            logit = logit * p.repetition_penalty if logit < 0 else logit / p.repetition_penalty
        if token in said:
            logit -= said.count(token) * p.frequency_penalty + p.presence_penalty
        out[token] = logit
    return out


def chosen(name: str, p: SamplingParams, logits: dict[int, float], chance: float, mu: float) -> list[int]:
    """The tokens that a rule keeps."""
    probabilities = softmax(logits)
    if name == "top_k":
        return ranked(logits)[: p.top_k] if p.top_k else list(logits)
    if name == "top_n_sigma" and p.top_n_sigma > 0:
        mean = sum(logits.values()) / len(logits)
        deviation = math.sqrt(sum((logit - mean) ** 2 for logit in logits.values()) / len(logits))
        bound = max(logits.values()) - p.top_n_sigma * deviation
        return [token for token, logit in logits.items() if logit == max(logits.values()) or at_least(logit, bound)]
    if name == "top_p" and p.top_p < 1:
        kept, mass = list[int](), 0.0
        for token in ranked(logits):
            if kept and at_least(mass, p.top_p):
                break
            kept.append(token)
            mass += probabilities[token]
        return kept
    if name == "min_p" and p.min_p:
        return [token for token in logits if at_least(probabilities[token] / max(probabilities.values()), p.min_p)]
    if name == "xtc" and chance < p.xtc_probability:
        top = [token for token in ranked(logits) if at_least(probabilities[token], p.xtc_threshold - EDGE * 2)]
        return [token for token in logits if token not in top[:-1]]
    if name == "mirostat":
        shares = {token: share for token, share in probabilities.items() if share}
        near = [token for token, share in shares.items() if at_least(mu, -math.log2(share))]
        return near or ranked(logits)[:1]
    return list(logits)


def heated(p: SamplingParams, logits: dict[int, float]) -> dict[int, float]:
    value = p.temperature
    if p.dynatemp_range and len(logits) > 1:
        entropy = -sum(share * math.log(share) for share in softmax(logits).values() if share)
        low = max(0, value - p.dynatemp_range)
        value = low + (value + p.dynatemp_range - low) * (entropy / math.log(len(logits))) ** p.dynatemp_exponent
    return {token: logit / max(value, 1e-3) for token, logit in logits.items()}


def plain(
    p: SamplingParams, row: Sequence[float], text: list[int], answer: int, chance: float, mu: float
) -> dict[int, float]:
    """The probabilities of the tokens that are left."""
    logits = dict(enumerate(row))
    order = list(p.samplers)
    if p.mirostat:
        order = [*(name for name in order if name in ("penalties", "dry")), "temperature", "mirostat"]
    for name in order:
        if name == "penalties":
            logits = penalized(p, logits, text, answer)
        elif name == "dry" and p.dry_multiplier:
            penalties = dry(p, text)
            logits = {token: logit - penalties.get(token, 0) for token, logit in logits.items()}
        elif name == "temperature":
            logits = heated(p, logits)
        else:
            kept = chosen(name, p, logits, chance, mu)
            logits = {token: logits[token] for token in sorted(kept)}
    return softmax(logits)


@given(settings=settings, prompt=st.lists(ids, max_size=14), seed=st.integers(0, 2**32))
def test_the_rules_in_any_order_are_the_plain_ones(settings: dict[str, Any], prompt: list[int], seed: int) -> None:
    params = SamplingParams(seed=seed, **settings)
    sampler = Sampler(params, prompt_tokens=prompt, piece=PIECES.__getitem__)
    numbers, chances = (np.random.Generator(each) for each in (np.random.PCG64(seed), np.random.PCG64(seed).jumped()))
    rows, mu = np.random.default_rng(seed).normal(0, 2, (10, VOCAB)).astype(np.float32), 2 * params.mirostat_tau
    text = list(prompt)
    for place, row in enumerate(rows):
        try:
            expected = plain(params, row.tolist(), text, place, chances.random(), mu)
        except NearEdge:
            return
        tokens, probabilities = sampler.distribution(row)
        assert tokens.tolist() == sorted(expected)
        # Logits are float32 between two rules: 6e-8 of up to 100, exponentiated.
        assert probabilities.tolist() == pytest.approx([expected[token] for token in sorted(expected)], abs=1e-4)
        token, edges = sampler.sample(row).token, np.cumsum(probabilities)
        assert token == tokens[min(np.searchsorted(edges, numbers.random() * edges[-1], side="right"), tokens.size - 1)]
        text.append(token)
        if params.mirostat:
            mu -= params.mirostat_eta * (-math.log2(probabilities[tokens.tolist().index(token)]) - params.mirostat_tau)


@given(text=st.lists(st.integers(0, 2), max_size=40), allowed=st.integers(0, 4), most=st.integers(0, 9))
def test_repetitions_are_those_of_a_plain_search(text: list[int], allowed: int, most: int) -> None:
    found: dict[int, int] = {}
    for end in range(1, len(text)):
        length = max(n for n in range(min(end, most) + 1) if text[end - n : end] == text[len(text) - n :])
        if length >= allowed:
            found[text[end]] = max(found.get(text[end], 0), length)
    tokens, lengths = repeats(np.array(text, np.int64), allowed, most)
    assert dict(zip(tokens.tolist(), lengths.tolist(), strict=True)) == found


@given(text=st.lists(ids, max_size=20), breakers=st.lists(st.text("abc:\n", min_size=1, max_size=4), max_size=3))
def test_breakers_are_found_across_tokens(text: list[int], breakers: list[str]) -> None:
    found = Breakers(breakers, PIECES.__getitem__, text)
    assert found.behind == behind_breaker(text, breakers)
    for token in range(VOCAB):
        assert found.holds(token) == any(breaker.encode() in PIECES[token] for breaker in breakers)


def test_a_stream_of_its_own_decides_about_xtc() -> None:
    """With a chance that is never taken the text is the same as without the rule."""
    rows = np.random.default_rng(0).normal(0, 2, (50, VOCAB)).astype(np.float32)
    params = SamplingParams(temperature=1, seed=5)
    without, never = Sampler(params), Sampler(replace(params, xtc_probability=1.0, xtc_threshold=1.0))
    assert [without.sample(row) for row in rows] == [never.sample(row) for row in rows]


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"xtc_probability": 0.5, "xtc_threshold": 0.1},
        {"mirostat": 2},
        {"dry_multiplier": 1.0},
        {"top_n_sigma": 1.0},
    ],
)
def test_looking_at_the_distribution_changes_nothing(rules: dict[str, Any]) -> None:
    rows = np.random.default_rng(1).normal(0, 2, (30, VOCAB)).astype(np.float32)
    params = SamplingParams(seed=3, **rules)
    one, other = (Sampler(params, prompt_tokens=[1, 2, 1], piece=PIECES.__getitem__) for _ in range(2))
    for row in rows:
        probabilities = one.distribution(row)[1]
        np.testing.assert_array_equal(one.distribution(row)[1], probabilities)
        assert one.sample(row) == other.sample(row)


def test_greedy_knows_penalties_and_dry_alone() -> None:
    row = np.array([3, 2.5, 1, 0, 0, 0], np.float32)
    rules: dict[str, Any] = {"xtc_probability": 1.0, "mirostat": 2, "dynatemp_range": 0.5, "top_n_sigma": 0.1}
    assert Sampler(SamplingParams(temperature=0, **rules)).sample(row).token == 0
    assert SamplingParams(temperature=0, **rules).is_greedy
    repeating = SamplingParams(temperature=0, dry_multiplier=1.0, samplers=("top_k", "dry"), top_k=1, **NO_BREAKERS)
    assert not repeating.is_greedy
    sampler = Sampler(repeating, prompt_tokens=[1, 2, 0, 1, 2])
    assert sampler.sample(row).token == 1


def test_a_rule_that_the_order_does_not_name_does_not_apply() -> None:
    row = np.array([1, 2, 3, 0, 0, 0], np.float32)
    params = SamplingParams(temperature=0.1, top_k=1, min_p=0.9, samplers=("top_p",))
    np.testing.assert_allclose(Sampler(params).distribution(row)[1], np.exp(row) / np.exp(row).sum(), rtol=1e-6)


def test_the_last_tokens_count_of_the_text_and_frequencies_in_the_answer() -> None:
    row = np.array([2, 1.9, 1.8, 0, 0, 0], np.float32)
    params = SamplingParams(temperature=0, repetition_penalty=2, repeat_last_n=1)
    assert [Sampler(params, prompt_tokens=p).sample(row).token for p in ([0, 1], [1, 0], [])] == [0, 1, 0]
    params = SamplingParams(temperature=0, presence_penalty=1, repeat_last_n=1)
    sampler = Sampler(params, prompt_tokens=[0])
    assert [sampler.sample(row).token for _ in range(4)] == [0, 1, 0, 1]
    off = SamplingParams(temperature=0, repetition_penalty=2, presence_penalty=2, repeat_last_n=0)
    assert Sampler(off, prompt_tokens=[0]).sample(row).token == 0


def test_breakers_need_a_tokenizer() -> None:
    with pytest.raises(InputError, match=r"pass dry_sequence_breakers=\(\)"):
        Sampler(SamplingParams(dry_multiplier=1))
    Sampler(SamplingParams(dry_multiplier=1, **NO_BREAKERS))


@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_a_dynamic_temperature_of_zero_leaves_the_most_likely_token(spread: float) -> None:
    sure = np.array([0, 200, 0, 0, 0, 0], np.float32)
    params = SamplingParams(temperature=1, dynatemp_range=spread)
    assert Sampler(params).distribution(sure)[0].tolist() == [1]
