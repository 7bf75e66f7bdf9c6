"""Rounding to float types and to int8, and what the naive program makes of it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from mistral_portable.boundary import Q8_0_BLOCK, Precision
from mistral_portable.cache import CacheSpec
from mistral_portable.config import MistralConfig
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing import nmse, one_shot, op_case, run
from mistral_portable.testing.naive import NaiveProgram
from mistral_portable.testing.rounding import EPSILON, round_to, round_to_int8


def test_round_to_bfloat16_ties_to_even() -> None:
    step = 2.0**-7  # between 1 and 2
    x = np.array([1 + step / 2, 1 + 3 * step / 2, -1 - step / 2, 1 + step / 2 + 2.0**-20, 1.01, 0.0, np.inf, 3.4e38])
    rounded = [1, 1 + 2 * step, -1, 1 + step, 1.0078125, 0, np.inf, np.inf]
    np.testing.assert_array_equal(round_to(x, "bfloat16"), np.array(rounded, np.float32))


def test_round_to_keeps_what_the_type_holds() -> None:
    for dtype, epsilon in EPSILON.items():
        x = np.array([1.0, 1 + epsilon, -0.5, 0.0])
        np.testing.assert_array_equal(round_to(x, dtype), x)
        assert round_to(np.array([1 + epsilon / 4]), dtype)[0] == 1
        assert round_to(x, dtype).dtype == ("float64" if dtype == "float64" else "float32")


def test_round_to_float16() -> None:
    np.testing.assert_array_equal(
        round_to(np.array([0.1, 65504.0]), "float16"), np.array([0.0999755859375, 65504.0], np.float32)
    )


_NUMBERS = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)  # scales that are not subnormal


@st.composite
def _blocks(draw: st.DrawFn) -> tuple[NDArray[np.float32], int]:
    """Numbers [rows, columns] and the length of their blocks."""
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, 12)))
    return draw(arrays(np.float32, shape, elements=_NUMBERS)), draw(st.integers(1, 14))


def _steps(x: NDArray[Any], block: int) -> NDArray[np.float64]:
    """The scale of each number, found block by block."""
    steps = np.zeros(x.shape)
    for begin in range(0, x.shape[1], block):
        part = np.s_[:, begin : begin + block]
        steps[part] = np.abs(x[part]).max(axis=1, keepdims=True) / 127
    return steps


@given(_blocks())
def test_int8_is_the_nearest_multiple_of_the_scale_of_the_block(drawn: tuple[NDArray[np.float32], int]) -> None:
    x, block = drawn
    rounded, steps = round_to_int8(x, block), _steps(x, block)
    assert (rounded.shape, rounded.dtype) == (x.shape, x.dtype)
    assert (np.abs(rounded - x) <= 0.5001 * steps).all()
    multiples = rounded[steps > 0] / steps[steps > 0]
    np.testing.assert_allclose(multiples, np.rint(multiples), rtol=0, atol=1e-4)
    assert np.abs(multiples).max(initial=0) <= 127.001


@given(_blocks(), st.floats(-0.49, 0.49))
def test_int8_of_what_is_int8_already_is_the_same(drawn: tuple[NDArray[np.float32], int], nudge: float) -> None:
    x, block = drawn
    rounded = round_to_int8(x, block)
    np.testing.assert_allclose(round_to_int8(rounded, block, nudge), rounded, rtol=1e-6)


@given(_blocks(), st.integers(0, 2**32 - 1))
def test_nudged_int8_may_go_either_way(drawn: tuple[NDArray[np.float32], int], seed: int) -> None:
    x, block = drawn
    nudge = np.random.default_rng(seed).uniform(-0.5, 0.5, x.shape)
    assert (np.abs(round_to_int8(x, block, nudge) - x) <= 1.0001 * _steps(x, block)).all()


def test_int8_of_known_numbers() -> None:
    x = np.array([[3, -126.6, 127, 254]])  # the docstring's example
    assert round_to_int8(x, 3).tolist() == [[3, -127, 127, 254]]
    assert round_to_int8(x, 3, 0.4).tolist() == [[3, -126, 127, 254]]
    assert round_to_int8(np.array([1.0, 127 * 1.0003]), 32, 0, "float16").tolist() == [1, 127]  # a scale of 1.0003
    assert round_to_int8(np.zeros((2, 5)), 4).tolist() == np.zeros((2, 5)).tolist()


CONFIG = MistralConfig(
    vocab_size=9,
    hidden_size=7 * 32,
    intermediate_size=512,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=40,
    sliding_window=1,
)


def _out_and_ref(op: str, precision: Precision, quantization: str | None = None) -> list[NDArray[Any]]:
    """The output of an op, from the naive program and from the float64 reference."""
    case = op_case(op, CONFIG, one_shot(range(9)), seed=0, quantization=quantization)
    spec = CacheSpec.from_config(CONFIG, max_context=9, page_size=4)
    programs = [
        NaiveProgram(case.graph, case.weights, spec, precision, seed=1),
        ReferenceProgram(case.graph, case.weights, spec, "float64"),
    ]
    return [run(program, case.graph, spec, case.scenario)[0]["out"] for program in programs]


def test_naive_linear_rounds_its_input_to_int8_if_the_weight_is_in_blocks() -> None:
    int8 = Precision(quantized_linear="int8")
    assert nmse(*_out_and_ref("linear", int8)) < 1e-12
    assert nmse(*_out_and_ref("linear", Precision(), "q8_0")) < 1e-12
    # Inputs of variance 1 / 224 reach about 2.6 deviations in 128; rounded either way, a step errs by step^2 / 6.
    expected = (2.6 / 127) ** 2 / 6
    assert expected / 2 < nmse(*_out_and_ref("linear", int8, "q8_0")) < expected * 2


@pytest.mark.parametrize(("kv_cache", "step"), [("float16", EPSILON["float16"]), ("q8_0", 1 / 127)])
def test_naive_cache_is_rounded(kv_cache: str, step: float) -> None:
    """With window 1 attention gives the value itself, as it was cached."""
    out, ref = _out_and_ref("attention", Precision(kv_cache=kv_cache))
    steps = np.empty_like(ref)
    for part in (np.s_[:, :Q8_0_BLOCK], np.s_[:, Q8_0_BLOCK:]):
        steps[part] = step * np.abs(ref[part]).max(axis=1, keepdims=True)
    error = np.abs(out - ref)
    assert (error <= 1.6 * steps).all()
    assert (error > 0.5 * steps).any()  # it goes either way


def test_cache_as_wide_as_the_activations_is_exact() -> None:
    for dtype, kv_cache in (("float32", "float32"), ("float16", "float32"), ("float16", "float16")):
        np.testing.assert_array_equal(
            _out_and_ref("attention", Precision(dtype, kv_cache=kv_cache))[0],
            _out_and_ref("attention", Precision(dtype))[0],
        )
