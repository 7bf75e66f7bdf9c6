"""ggml's blocks as affine groups: the same weights, bit for bit, as `gguf.quants` unpacks."""

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_mlx.ggml import LAYOUTS, pack
from mistral_portable_mlx.matrices import Affine, read_matrix
from weights.files import random_blocks

from mistral_portable.testing import nmse
from mistral_portable.weights import QuantTensor

_HALF_SCALES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl")  # scale and bias are float16 numbers


def tensor(kind: str, rows: int, columns: int, seed: int) -> QuantTensor:
    blocks = random_blocks(kind.upper(), (rows, columns), np.random.default_rng(seed))
    return QuantTensor("w", (rows, columns), GGMLQuantizationType[kind.upper()], blocks)


@pytest.mark.parametrize("kind", LAYOUTS)
@settings(max_examples=15)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_weights_are_those_of_gguf_bit_for_bit(kind: str, rows: int, blocks: int, seed: int) -> None:
    stored = tensor(kind, rows, 256 * blocks, seed)
    expected = quants.dequantize(stored.blocks(), GGMLQuantizationType(stored.type))
    matrix = read_matrix([stored], mx.float32)
    assert isinstance(matrix, Affine)
    found = np.array(matrix.rows(mx.arange(rows)))
    # -0 and 0 are the same weight; all others have the same bits.
    np.testing.assert_array_equal(found + 0.0, expected + 0.0)
    np.testing.assert_array_equal((found + 0.0).view(np.uint32), (expected + 0.0).view(np.uint32))


@pytest.mark.parametrize("kind", _HALF_SCALES)
def test_scales_of_float16_stay_what_they_are(kind: str) -> None:
    matrix = read_matrix([tensor(kind, 3, 512, 0)], mx.float32)
    for numbers in matrix.arrays[1:]:
        wide = np.array(numbers)
        np.testing.assert_array_equal(wide.astype(np.float16).astype(np.float32), wide)


def test_products_in_float16_are_added_up_in_float32() -> None:
    stored = tensor("q4_0", 64, 4096, 0)
    x = np.random.default_rng(1).standard_normal((4, 4096)).astype(np.float16)
    expected = x.astype(np.float64) @ stored.numpy(np.float64).T
    found = np.array(read_matrix([stored], mx.float16).multiply(mx.array(x)).astype(mx.float32))
    assert nmse(found, expected) <= 1e-6


@pytest.mark.parametrize("kind", LAYOUTS)
def test_products(kind: str) -> None:
    stored = tensor(kind, 7, 512, 1)
    x = np.random.default_rng(2).standard_normal((3, 512)).astype(np.float32)
    expected = x.astype(np.float64) @ stored.numpy(np.float64).T
    found = np.array(read_matrix([stored], mx.float32).multiply(mx.array(x)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_rows_of_several_parts_follow_each_other() -> None:
    parts = [tensor("q4_0", rows, 64, rows) for rows in (3, 1, 4)]
    found = np.array(read_matrix(parts, mx.float32).rows(mx.arange(8)))
    np.testing.assert_array_equal(found, np.concatenate([part.numpy() for part in parts]))


@given(bits=st.sampled_from([2, 3, 4, 5, 6, 8]), rows=st.integers(1, 3), groups=st.integers(1, 4), seed=st.integers(0))
def test_codes_are_packed_as_mlx_unpacks_them(bits: int, rows: int, groups: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, (rows, 32 * groups)).astype(np.uint8)
    ones, zeros = mx.ones((rows, groups)), mx.zeros((rows, groups))
    found = mx.dequantize(pack(mx.array(codes), bits), ones, zeros, group_size=32, bits=bits)
    np.testing.assert_array_equal(np.array(found), codes)
