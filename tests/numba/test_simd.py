"""Operations on vectors, in kernels that tests define: exp, and each instruction set's conversions of float16."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mistral_portable_numba.compiler.simd.get_put import get_f16, get_f32, get_i64, put_f16, put_f32
from mistral_portable_numba.compiler.simd.load_store import load_f16, load_f32, store_f16, store_f32
from mistral_portable_numba.kernels.exp import exp
from numba_kernels import EVERY_ISA, Memory
from numpy.typing import NDArray

EPS = 2.0**-23

# Kernels with the arguments: counter, count, source, target.


def exps(args: Any, thread: Any, threads: Any) -> None:
    for i in range(0, get_i64(args + 8), 16):
        store_f32(get_i64(args + 24) + 4 * i, exp(load_f32(get_i64(args + 16) + 4 * i)))


def widen(args: Any, thread: Any, threads: Any) -> None:
    for i in range(0, get_i64(args + 8), 16):
        store_f32(get_i64(args + 24) + 4 * i, load_f16(get_i64(args + 16) + 2 * i))


def widen_each(args: Any, thread: Any, threads: Any) -> None:
    for i in range(get_i64(args + 8)):
        put_f32(get_i64(args + 24) + 4 * i, get_f16(get_i64(args + 16) + 2 * i))


def narrow(args: Any, thread: Any, threads: Any) -> None:
    for i in range(0, get_i64(args + 8), 16):
        store_f16(get_i64(args + 24) + 2 * i, load_f32(get_i64(args + 16) + 4 * i))


def narrow_each(args: Any, thread: Any, threads: Any) -> None:
    for i in range(get_i64(args + 8)):
        put_f16(get_i64(args + 24) + 2 * i, get_f32(get_i64(args + 16) + 4 * i))


def result(isa: str, kernel: Callable[..., None], x: NDArray[Any], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """The result of a kernel on x, whose length is a multiple of 16."""
    memory = Memory()
    out = memory.blank(len(x), dtype)
    memory.run(isa, kernel, len(x), memory.array(x), out)
    return out


@EVERY_ISA
def test_exp_is_within_two_units_in_the_last_place(isa: str) -> None:
    x = np.linspace(-87, 88, 1 << 20, dtype=np.float32)
    ref = np.exp(x.astype(np.float64))
    assert (np.abs(result(isa, exps, x, np.float32) - ref) <= 2 * np.spacing(ref.astype(np.float32))).all()


@EVERY_ISA
def test_exp_of_extreme_numbers(isa: str) -> None:
    x = np.array([0, -0.0, -87, -88, -1e30, -np.inf, 88, 89, 1e30, np.inf, np.nan, *[1] * 5], np.float32)
    out = result(isa, exps, x, np.float32)
    low, high = np.exp([-87.0, 88.0])
    expected = [1, 1, low, low, low, low, high, high, high, high, np.nan, *[np.e] * 5]
    np.testing.assert_allclose(out, expected, rtol=2 * EPS)


def assert_same_numbers(out: NDArray[Any], ref: NDArray[Any]) -> None:
    """Compare bit for bit, except that all NaNs are equal."""
    assert np.array_equal(np.isnan(out), np.isnan(ref))
    bits = np.uint32 if out.dtype == np.float32 else np.uint16
    number = ~np.isnan(ref)
    assert np.array_equal(out[number].view(bits), ref[number].view(bits))


@EVERY_ISA
@pytest.mark.parametrize("kernel", [widen, widen_each])
def test_every_float16_widens(isa: str, kernel: Callable[..., None]) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert_same_numbers(result(isa, kernel, halves, np.float32), halves.astype(np.float32))


@EVERY_ISA
@pytest.mark.parametrize("kernel", [narrow, narrow_each])
def test_ties_and_their_neighbours_narrow(isa: str, kernel: Callable[..., None]) -> None:
    """Every float16, the midpoints between neighbours, also beyond the last, and the float32 next to each of these."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middles = (halves + np.append(halves[1:], 65536)) / 2
    x = np.concatenate([halves, middles]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))])
    x = np.concatenate([x, -x])
    with np.errstate(over="ignore"):
        assert_same_numbers(result(isa, kernel, x, np.float16), x.astype(np.float16))


@EVERY_ISA
@pytest.mark.parametrize("kernel", [narrow, narrow_each])
@given(x=arrays(np.uint32, 64, elements=st.integers(0, 2**32 - 1)))
def test_any_float32_narrows(isa: str, kernel: Callable[..., None], x: NDArray[np.uint32]) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        ref = x.view(np.float32).astype(np.float16)
    assert_same_numbers(result(isa, kernel, x.view(np.float32), np.float16), ref)
