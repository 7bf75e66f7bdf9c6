"""Planes: repacked blocks have the bits of `gguf.quants`, and the sizes that loading counts on."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch import matrices
from mistral_portable_torch.ggml import LAYOUTS
from mistral_portable_torch.matrices import read_matrix, stored_bytes
from mistral_portable_torch.packed import Packed
from mistral_portable_torch.planes import Planes
from weights.files import random_blocks

from mistral_portable.weights import QuantTensor

CPU = torch.device("cpu")


def tensor(kind: str, rows: int, columns: int, seed: int) -> QuantTensor:
    blocks = random_blocks(kind.upper(), (rows, columns), np.random.default_rng(seed))
    return QuantTensor("w", (rows, columns), GGMLQuantizationType[kind.upper()], blocks)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices are repacked, as on a GPU."""
    monkeypatch.setattr(matrices, "has_kernels", lambda device: True)


@pytest.mark.parametrize("kind", LAYOUTS)
@settings(max_examples=10)  # of each type
@given(rows=st.integers(1, 5), blocks=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_planes_have_the_bits_of_gguf(kind: str, rows: int, blocks: int, seed: int) -> None:
    stored = tensor(kind, rows, LAYOUTS[kind].columns * blocks, seed)
    planes = Planes.empty(kind, stored.shape, CPU)
    planes.fill(torch.from_numpy(stored.blocks().copy()))
    expected = quants.dequantize(stored.blocks(), GGMLQuantizationType(stored.type))
    # -0 and 0 count as the same weight; all others must have the same bits.
    found = planes.weights(torch.float32).numpy()
    np.testing.assert_array_equal((found + 0.0).view(np.uint32), (expected + 0.0).view(np.uint32))


def test_words_hold_every_fourth_column() -> None:
    codes = np.tile(np.arange(16, dtype=np.uint8), 2)
    block = np.concatenate([np.zeros(2, np.uint8), codes[:16] | codes[16:] << 4])
    planes = Planes.empty("q4_0", (1, 32), CPU)
    planes.fill(torch.from_numpy(block[None]))
    assert [hex(word & 0xFFFFFFFF) for word in planes.codes[0].flatten().tolist()] == [
        *("0xc840c840", "0xd951d951", "0xea62ea62", "0xfb73fb73"),
    ]


@pytest.mark.parametrize(
    ("kind", "size"),
    [("q4_0", 144), ("q8_0", 272), ("q5_1", 192), ("q4_k", 148), ("q5_k", 180), ("q6_k", 210), ("q3_k", 114),
     ("q2_k", 100), ("iq4_nl", 144), ("iq4_xs", 138)],
)  # fmt: skip
def test_bytes_of_256_weights(kind: str, size: int) -> None:
    assert Planes.empty(kind, (3, 512), torch.device("meta")).nbytes == 6 * size


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("kind", LAYOUTS)
def test_matrices_take_the_bytes_that_were_counted_before_they_were_read(kind: str) -> None:
    parts = [tensor(kind, rows, 512, rows) for rows in (3, 1, 4)]
    matrix = read_matrix(parts, torch.float32, CPU)
    assert isinstance(matrix, Packed)
    assert matrix.nbytes == sum(stored_bytes(part, torch.float32, CPU) for part in parts)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("together", [1, 512, 1024, 10**6])
def test_parts_are_joined_and_sliced_in_order(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """together: weights that are repacked, and unpacked, at a time."""
    monkeypatch.setattr(matrices, "SLICE", together)
    monkeypatch.setattr("mistral_portable_torch.ggml.SLICE", together)
    parts = [tensor("q4_k", rows, 512, rows) for rows in (3, 1, 4)]
    matrix = read_matrix(parts, torch.float32, CPU)
    assert isinstance(matrix, Packed)
    expected = np.concatenate([part.numpy() for part in parts])
    order = torch.tensor([7, 0, 3, 3, 1, 2, 4, 5, 6])
    np.testing.assert_array_equal(matrix.rows(order).numpy(), expected[order])
    np.testing.assert_array_equal(matrix.one_of(3, 4).rows(torch.arange(2)).numpy(), expected[6:])
    np.testing.assert_array_equal(
        matrix.some_of(torch.tensor([2, 0]), 4).numpy(), expected[[4, 5, 0, 1]].reshape(2, 2, 512)
    )
