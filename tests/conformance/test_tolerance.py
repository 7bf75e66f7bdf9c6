"""The tolerance is neither too wide nor too narrow, and its parts are what they say."""

import numpy as np
import pytest

from mistral_portable.boundary import Precision
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.graph import build
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing import compare, nmse, one_shot, random_weights, run
from mistral_portable.testing.naive import NaiveProgram
from mistral_portable.testing.rounding import EPSILON

REF = np.array([[1.0, -2.0, 0.5], [0.25, 4.0, -1.0]])
NAIVE = [REF + 0.001, REF - 0.002]  # the worst naive error is 0.002


def test_nmse() -> None:
    assert nmse(np.array([1.0, 2.0]), np.array([1.0, 2.1])) == pytest.approx(0.01 / 5.41)  # the docstring's example
    assert nmse(REF, REF) == 0
    assert nmse(np.zeros(2), np.zeros(2)) == 0
    assert nmse(np.ones(2), np.zeros(2)) == 1


def test_same_array_passes() -> None:
    result = compare(REF, REF, NAIVE, "float32")
    assert (result.error, result.problem) == (0, "")


@pytest.mark.parametrize(("factor", "passes"), [(1, True), (1.9, True), (2.1, False), (4, False)])
def test_twice_the_worst_naive_error_is_allowed(factor: float, passes: bool) -> None:
    out = REF.copy()
    out[1, 2] += factor * 0.002  # a single number decides
    result = compare(out, REF, NAIVE, "float32")
    assert result.limit == pytest.approx(2 * 0.002 + 4 * EPSILON["float32"])
    assert (result.problem == "") is passes


def test_exact_naive_allows_one_epsilon_of_the_largest_value() -> None:
    epsilon = 4 * EPSILON["float32"]
    assert compare(REF + epsilon, REF, [REF], "float32").problem == ""
    assert compare(REF + 2 * epsilon, REF, [REF], "float32").problem != ""


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poisoned_output_fails(poison: float) -> None:
    out = REF.copy()
    out[0, 1] = poison
    assert compare(out, REF, NAIVE, "float32").problem == "1 values are not finite"


def test_wrong_shape_fails() -> None:
    assert "shape" in compare(REF.T, REF, NAIVE, "float32").problem
    assert "shape" in compare(REF[:1], REF, NAIVE, "float32").problem  # it would broadcast


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_limit_that_is_not_finite_judges_nothing(value: float) -> None:
    assert "overflows" in compare(REF, REF, [REF, REF * value], "float16").problem


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_four_times_a_real_naive_error_fails(dtype: str) -> None:
    config = MistralConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=3,
    )
    graph = build(config)
    weights = random_weights(graph, seed=0)
    scenario = one_shot(range(11))
    spec = CacheSpec.from_config(config, max_context=11, page_size=4, max_chunk=11)
    programs = [ReferenceProgram(graph, weights, spec, "float64")]
    programs += [NaiveProgram(graph, weights, spec, Precision(dtype), seed) for seed in range(4)]
    ref, *naive, fourth = (run(program, graph, spec, scenario)[0]["logits"] for program in programs)
    assert compare(fourth, ref, naive, dtype).problem == ""
    worst = max(naive, key=lambda out: float(np.max(np.abs(out - ref))))
    assert "exceeds" in compare(ref + 4 * (worst - ref), ref, naive, dtype).problem
