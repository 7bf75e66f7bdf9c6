"""Quantized tensors unpack to the same bits as in gguf, and dense ones convert exactly, also with permuted rows."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from weights.files import bfloat16, random_blocks

from mistral_portable.weights import DenseTensor, QuantTensor
from mistral_portable.weights.blocks import QUANTIZED

types = pytest.mark.parametrize("name", sorted(QUANTIZED))


@types
@given(rows=st.integers(1, 20), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_unpacking_is_bit_exact(name: str, rows: int, blocks: int, seed: int, data: st.DataObject) -> None:
    kind = GGMLQuantizationType[name]
    shape = (rows, blocks * GGML_QUANT_SIZES[kind][0])
    packed = random_blocks(name, shape, np.random.default_rng(seed))
    tensor = QuantTensor("w", shape, kind, packed)
    assert tensor.dtype == name.lower()
    assert tensor.nbytes == packed.nbytes

    expected = quants.dequantize(packed, kind)
    order = np.array(data.draw(st.permutations(range(rows))))
    again = np.array(data.draw(st.permutations(range(rows))))
    for got, want in (
        (tensor, expected),
        (tensor.permute_rows(order), expected[order]),
        (tensor.permute_rows(order).permute_rows(again), expected[order][again]),
    ):
        values = got.numpy()
        assert values.shape == shape == got.shape
        assert values.dtype == np.float32
        assert values.tobytes() == want.tobytes()
        assert got.numpy(np.float64).tobytes() == want.astype(np.float64).tobytes()
    assert np.array_equal(tensor.permute_rows(order).blocks(), packed[order])
    assert tensor.blocks() is packed


@types
def test_any_bytes_unpack_without_warning(name: str, recwarn: pytest.WarningsRecorder) -> None:
    """Infinite scales included: 0xFF bytes are NaN scales, 0x7C ones infinities."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    for byte in (0x00, 0x7C, 0xFF):
        packed = np.full((1, size), byte, np.uint8)
        assert QuantTensor("w", (1, block), GGMLQuantizationType[name], packed).numpy().shape == (1, block)
    assert not recwarn.list


@given(rows=st.integers(1, 8), columns=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_dense_values_are_exact(rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    bits = bfloat16(values)
    order = np.array(data.draw(st.permutations(range(rows))))
    for dtype, stored, exact in (
        ("float32", values, values),
        ("float16", values.astype(np.float16), values.astype(np.float16).astype(np.float32)),
        ("bfloat16", bits, (bits.astype(np.uint32) << 16).view(np.float32)),
    ):
        tensor = DenseTensor("w", dtype, stored)
        assert np.array_equal(tensor.numpy(), exact)
        assert np.array_equal(tensor.numpy(np.float64), exact.astype(np.float64))
        assert tensor.permute_rows(order).shape == tensor.shape
        assert np.array_equal(tensor.permute_rows(order).numpy(), exact[order])
        assert np.array_equal(tensor.permute_rows(order).raw(), stored[order])
        assert tensor.permute_rows(order).permute_rows(order).numpy().tobytes() == exact[order][order].tobytes()


def test_bfloat16_of_known_bits() -> None:
    bits = np.array([0x3F80, 0xC000, 0x3DCD, 0x7F80], np.uint16)
    assert DenseTensor("w", "bfloat16", bits).numpy().tolist() == [1.0, -2.0, 0.10009765625, float("inf")]


def test_numpy_gives_an_own_array() -> None:
    stored = np.zeros((2, 2), np.float32)
    stored.flags.writeable = False
    values = DenseTensor("w", "float32", stored).numpy()
    values[0, 0] = 1
    assert stored[0, 0] == 0


def test_unaligned_data_is_aligned_for_kernels() -> None:
    unaligned = np.zeros(9, np.uint8)[1:].view(np.float32)
    assert not unaligned.flags.aligned
    assert DenseTensor("w", "float32", unaligned).raw().flags.aligned
