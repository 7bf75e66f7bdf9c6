"""Linear layers over bfloat16 weights by AMX: accuracy, the same bits for any tokens beside, and their instructions."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_numba.layouts import TILED_SCRATCH, TOKEN_GROUP, all_tile_sizes, bf16_bytes, round_up
from numba_ir import linux_listing
from numba_kernels import NEEDS_AMX, Memory, at
from numba_linear import Expected
from numpy.typing import NDArray

from mistral_portable.testing.rounding import round_to

SEEDS = st.integers(0, 2**31)
Floats = NDArray[np.float32]


def product(x: Floats, weight: Floats) -> Floats:
    """x @ weight.T, x rounded to bfloat16."""
    memory, (rows, columns), tokens = Memory(), weight.shape, len(x)
    stored = memory.array((weight.view(np.uint32) >> 16).astype(np.uint16))
    rounded = memory.blank((round_up(tokens, TOKEN_GROUP), bf16_bytes(columns)), np.uint8)
    memory.run("amx", "round_bfloat16", [tokens], columns, *at(memory.rows_of(x)), *at(rounded))
    out, scratch = memory.rows(tokens, rows), memory.blank(2 * TILED_SCRATCH, np.uint8)
    places = (stored, *at(rounded), *at(out), memory.array(all_tile_sizes()), scratch, TILED_SCRATCH)
    memory.run("amx", "tiled_bfloat16", [tokens], rows, columns, *places, thread=1)
    return out[:tokens, :rows]


def drawn(tokens: int, rows: int, columns: int, seed: int) -> tuple[Floats, Floats]:
    """Random x [tokens, columns], and a weight [rows, columns] of bfloat16."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    return x, round_to(random.standard_normal((rows, columns)).astype(np.float32), "bfloat16")


@NEEDS_AMX
@settings(max_examples=40)  # a few ms each, and all sizes of tiles at the edges are drawn among them
@given(tokens=st.integers(0, 50), rows=st.integers(1, 150), columns=st.integers(1, 400), seed=SEEDS)
def test_inputs_are_rounded_to_bfloat16(tokens: int, rows: int, columns: int, seed: int) -> None:
    x, weight = drawn(tokens, rows, columns, seed)
    Expected(round_to(x, "bfloat16"), weight, np.random.default_rng(seed)).check(product(x, weight))


@NEEDS_AMX
@settings(max_examples=25)  # each multiplies up to 192 tokens twice
@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 5, 15, 16, 17, 31, 33, 48]), min_size=1, max_size=4),
    rows=st.integers(1, 150),
    columns=st.integers(1, 700),
    seed=SEEDS,
)
def test_tokens_have_the_same_bits_in_any_chunks(sizes: list[int], rows: int, columns: int, seed: int) -> None:
    x, weight = drawn(sum(sizes), rows, columns, seed)
    together = product(x, weight)
    chunks = np.split(x, np.cumsum(sizes)[:-1])
    assert np.array_equal(np.concatenate([product(chunk, weight) for chunk in chunks]), together)
    assert np.array_equal(product(x[-1:], weight), together[-1:])


@NEEDS_AMX
def test_many_tokens_and_rows() -> None:
    """More tokens and rows than are taken at a time, and more columns than a chunk."""
    x, weight = drawn(530, 2100, 590, 6)
    out = product(x, weight)
    Expected(round_to(x, "bfloat16"), weight, np.random.default_rng(6)).check(out)
    assert np.array_equal(product(x[515:520], weight), out[515:520])


@NEEDS_AMX
@pytest.mark.parametrize("tokens", [1, 3, 45])
def test_weights_are_read_exactly_and_denormal_ones_as_zeros(tokens: int) -> None:
    """Random bits, so that the smallest and the largest numbers are among the weights."""
    bits = np.random.default_rng(5).integers(0, 2**16, (70, 45), np.uint32) << 16
    weight = bits.view(np.float32)
    weight[~np.isfinite(weight)] = 1
    units = np.split(np.eye(45, dtype=np.float32), range(tokens, 45, tokens))
    found = np.concatenate([product(some, weight) for some in units]).T
    normal = np.abs(weight) >= np.finfo(np.float32).smallest_normal
    assert np.array_equal(found, np.where(normal, weight, 0))


@NEEDS_AMX
@pytest.mark.parametrize("tokens", [2, 20])
def test_nan_and_infinity_stay_with_their_tokens(tokens: int) -> None:
    x, _ = drawn(tokens, 1, 90, 3)
    x[0, 7] = np.uint32(0x7F800001).view(np.float32)  # NaN of which no bit is left in bfloat16
    x[1, 8] = np.inf
    out = product(x, np.ones((70, 90), np.float32))
    assert np.isnan(out[0]).all()
    assert (out[1] == np.inf).all()
    assert np.isfinite(out[2:]).all()


def test_tiles_are_multiplied() -> None:
    """Four tiles of weights, for few tokens, at the edges of matrices, and for many."""
    listing = linux_listing("tiled_bfloat16", "amx")
    assert len(re.findall(r"^\ttdpbf16ps\t", listing, re.M)) >= 3 * 4
    assert not re.search(r"^\tvfmadd", listing, re.M)
