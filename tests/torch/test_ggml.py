"""ggml blocks on the device: weights have the same bits as those that `gguf.quants` unpacks."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.ggml import LAYOUTS
from mistral_portable_torch.matrices import Blocks, read_matrix
from weights.files import random_blocks

from mistral_portable.testing import nmse
from mistral_portable.weights import QuantTensor
from mistral_portable.weights.blocks import QUANTIZED

CPU = torch.device("cpu")


def tensor(kind: str, rows: int, columns: int, seed: int) -> QuantTensor:
    blocks = random_blocks(kind.upper(), (rows, columns), np.random.default_rng(seed))
    return QuantTensor("w", (rows, columns), GGMLQuantizationType[kind.upper()], blocks)


def test_every_quantized_type_has_a_layout() -> None:
    assert set(LAYOUTS) == {kind.lower() for kind in QUANTIZED}


@pytest.mark.parametrize("kind", LAYOUTS)
@settings(max_examples=10)
@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_weights_have_the_bits_of_gguf(kind: str, rows: int, blocks: int, seed: int) -> None:
    stored = tensor(kind, rows, 256 * blocks, seed)
    expected = quants.dequantize(stored.blocks(), GGMLQuantizationType(stored.type))
    matrix = read_matrix([stored], torch.float32, CPU)
    assert isinstance(matrix, Blocks)
    assert matrix.nbytes == stored.nbytes
    found = matrix.rows(torch.arange(rows)).numpy()
    # -0 and 0 count as the same weight; all others must have the same bits.
    np.testing.assert_array_equal((found + 0.0).view(np.uint32), (expected + 0.0).view(np.uint32))


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-12), (torch.float16, 1e-6), (torch.bfloat16, 1e-4)])
def test_products(kind: str, dtype: torch.dtype, allowed: float) -> None:
    stored = tensor(kind, 7, 512, 1)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = x.double().numpy() @ stored.numpy(np.float64).T
    found = read_matrix([stored], dtype, CPU).multiply(x, None)
    assert nmse(found.float().numpy(), expected) <= allowed


def test_rows_of_several_parts_are_joined_in_order() -> None:
    parts = [tensor("q4_0", rows, 64, rows) for rows in (3, 1, 4)]
    found = read_matrix(parts, torch.float32, CPU).rows(torch.arange(8)).numpy()
    np.testing.assert_array_equal(found, np.concatenate([part.numpy() for part in parts]))
