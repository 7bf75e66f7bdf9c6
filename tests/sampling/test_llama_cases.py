"""Golden cases of llama.cpp: the data of its tests/test-sampling.cpp (commit 07e4038), whose checks allow 1e-5.

Each is a row of probabilities, the settings, and the probabilities of the tokens that are left, by rising id. Its rules
for top_k and the like are tested one at a time there, so `samplers` names one here. Cases with limits that this package
refuses, such as min_p=1.05, are left out.
"""

from typing import Any

import numpy as np
import pytest

from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.sampling.processors import frequency_presence_penalty, softmax

QUARTERS, FIFTHS, RISING = [0.25] * 4, [0.2] * 5, [0.1, 0.2, 0.3, 0.4]
FALLING = RISING[::-1]
DRY = {"dry_multiplier": 1, "dry_base": 1.1, "dry_allowed_length": 2, "dry_penalty_last_n": -1}

RULES: list[tuple[str, list[float], dict[str, Any], list[float]]] = [
    ("temperature", RISING, {"temperature": 1}, RISING),
    ("temperature", RISING, {"temperature": 0}, [1]),
    ("temperature", RISING, {"temperature": 1, "dynatemp_range": 0}, RISING),
    ("top_k", RISING, {"top_k": 1}, [1]),
    ("top_k", RISING, {"top_k": 3}, [0.22222, 0.33333, 0.44444]),
    ("top_k", RISING, {"top_k": 4}, RISING),
    ("top_k", RISING, {"top_k": 0}, RISING),
    ("top_p", RISING, {"top_p": 0.7}, [0.428571, 0.571429]),
    ("top_p", RISING, {"top_p": 0.8}, [0.22222, 0.33333, 0.44444]),
    ("top_p", RISING, {"top_p": 1}, RISING),
    *(("min_p", RISING, {"min_p": p}, RISING) for p in (0, 0.24)),
    *(("min_p", RISING, {"min_p": p}, [0.2 / 0.9, 0.3 / 0.9, 0.4 / 0.9]) for p in (0.26, 0.49)),
    *(("min_p", RISING, {"min_p": p}, [0.3 / 0.7, 0.4 / 0.7]) for p in (0.51, 0.74)),
    *(("min_p", RISING, {"min_p": p}, [1.0]) for p in (0.76, 1)),
    ("typical_p", [0.97, 0.01, 0.01, 0.01], {"typical_p": 0.5}, [1]),
    ("typical_p", [0.4, 0.2, 0.2, 0.2], {"typical_p": 0.5}, [1 / 3] * 3),
    # Of XTC, they check the probabilities before it, which are divided by their sum here.
    ("xtc", FALLING, {"xtc_probability": 1, "xtc_threshold": 0.09}, [1]),
    ("xtc", FALLING, {"xtc_probability": 1, "xtc_threshold": 0.19}, [0.2 / 0.3, 0.1 / 0.3]),
    ("xtc", FALLING, {"xtc_probability": 1, "xtc_threshold": 0.29}, [0.3 / 0.6, 0.2 / 0.6, 0.1 / 0.6]),
    ("xtc", FALLING, {"xtc_probability": 1, "xtc_threshold": 0.39}, FALLING),
    ("top_n_sigma", RISING, {"top_n_sigma": 1}, [0.428571, 0.571429]),
    ("top_n_sigma", RISING, {"top_n_sigma": 0}, RISING),
    ("top_n_sigma", RISING, {"top_n_sigma": 3}, RISING),
]
REPEATED: dict[str, Any] = {"repetition_penalty": 50}
COUNTED: dict[str, Any] = {"repetition_penalty": 1, "frequency_penalty": 2, "presence_penalty": 2}
HISTORIES: list[tuple[str, list[float], list[int], dict[str, Any], list[float]]] = [
    ("penalties", FIFTHS, [0], REPEATED, [0, 0.25, 0.25, 0.25, 0.25]),
    ("penalties", FIFTHS, [0, 1, 2], REPEATED, [0, 0, 0, 0.5, 0.5]),
    ("penalties", FIFTHS, [0, 1, 2, 0, 0], REPEATED, [0, 0, 0, 0.5, 0.5]),
    ("dry", QUARTERS, [0, 1], DRY, QUARTERS),
    ("dry", QUARTERS, [0, 1, 2, 0, 1], DRY, [0.296923, 0.296923, 0.109232, 0.296923]),
    ("dry", FIFTHS, [0, 1, 3, 4, 0, 1], DRY | {"dry_sequence_breakers": ["\x03"]}, FIFTHS),
    (
        "dry",
        FIFTHS,
        [0, 1, 2, 0, 1],
        DRY | {"dry_multiplier": 2},
        [0.241818, 0.241818, 0.032727, 0.241818, 0.241818],
    ),
    ("dry", FIFTHS, [0, 1, 2, 3, 4, 0, 1], DRY | {"dry_allowed_length": 4}, FIFTHS),
]


@pytest.mark.parametrize(("name", "probabilities", "settings", "expected"), RULES)
def test_a_rule_alone(name: str, probabilities: list[float], settings: dict[str, Any], expected: list[float]) -> None:
    params = SamplingParams(samplers=(name,), **{"temperature": 1, **settings})
    found = Sampler(params).distribution(np.log(np.array(probabilities, np.float32)))[1]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("name", "probabilities", "text", "settings", "expected"), HISTORIES)
def test_a_rule_that_looks_back(
    name: str, probabilities: list[float], text: list[int], settings: dict[str, Any], expected: list[float]
) -> None:
    settings = {"dry_sequence_breakers": (), "temperature": 1, **settings}
    params = SamplingParams(samplers=(name,), **settings)
    sampler = Sampler(params, prompt_tokens=text, piece=lambda token: bytes([token]))
    found = np.zeros(len(probabilities))
    tokens, chances = sampler.distribution(np.log(np.array(probabilities, np.float32)))
    found[tokens] = chances
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([0], [0.000011, 0.249997, 0.249997, 0.249997, 0.249997]),
        ([0, 1, 2], [0.000023, 0.000023, 0.000023, 0.499966, 0.499966]),
        ([0, 1, 2, 0, 0], [0.000000, 0.000023, 0.000023, 0.499977, 0.499977]),
    ],
)
def test_frequency_and_presence(text: list[int], expected: list[float]) -> None:
    """Both are 5 there, and 2 at most here: the rule itself is asked. It counts the answer, as OpenAI's API says."""
    row = np.log(np.array(FIFTHS, np.float32))
    tokens, counts = np.unique(text, return_counts=True)
    frequency_presence_penalty(row, tokens, counts, 5, 5)
    assert softmax(row).tolist() == pytest.approx(expected, abs=1e-5)


SIZE = 10_000
QUEUES = [
    ("k", 10_000, 1, 1),
    ("k", 1, 1, 1),
    ("k", 100, 1, 1),
    ("p", 10_000, 1, 1),
    ("p", 10_000, 0.0003, 1),
    ("p", 10_000, 0.8, 1),
    ("m", 10_000, 1, 1),
    ("m", 10_000, 1, 1e-12),
    ("m", 10_000, 1, 9997.9 / 9999),
    ("m", 10_000, 1, 0.1),
    ("mp", 100, 0.8, 9997.9 / 9999),
    *((order, 100, 0.8, 0.1) for order in ("kp", "km", "pk", "pm", "mk", "mp")),
    *((order, 100, 0.8, 0.1) for order in ("kpm", "kmp", "pkm", "pmk", "mkp", "mpk")),
]


@pytest.mark.parametrize(("order", "k", "p", "least"), QUEUES)
def test_rules_in_a_row(order: str, k: int, p: float, least: float) -> None:
    """Token i is i times as likely as token 1, so each rule keeps the ids from one on, which integers tell."""
    names = {"k": "top_k", "p": "top_p", "m": "min_p"}
    with np.errstate(divide="ignore"):  # token 0 has no chance
        row = np.log(np.arange(SIZE, dtype=np.float32))
    params = SamplingParams(temperature=1, samplers=tuple(names[one] for one in order), top_k=k, top_p=p, min_p=least)
    first = 1
    for one in order:
        if one == "k":
            first = max(first, SIZE - k)
        elif one == "m":
            first = max(first, int(np.ceil(least * (SIZE - 1))))
        else:
            sums = np.cumsum(np.arange(SIZE - 1, first - 1, -1))
            first = SIZE - 1 - int(np.searchsorted(sums, p * sums[-1]))
    assert Sampler(params).distribution(row)[0].tolist() == list(range(first, SIZE))
