"""Float matrices become the blocks of `gguf.quants`, lazily; other tensors stay as they are."""

import re

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from weights.files import bfloat16, random_blocks, random_tensors, small_config, write_gguf, write_hf

from mistral_portable.errors import InputError
from mistral_portable.weights import BlockTensor, DenseTensor, QuantTensor, Tensor, open_checkpoint
from mistral_portable.weights.quantize_on_read import QUANTIZABLE, quantized

types = pytest.mark.parametrize("type", QUANTIZABLE)


def _blocks(tensor: Tensor) -> BlockTensor:
    assert isinstance(tensor, BlockTensor)
    return tensor


@types
@given(
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.tuples(st.integers(1, 40), st.integers(1, 3)),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_blocks_are_those_of_gguf(type: str, dtype: str, size: tuple[int, int], seed: int, data: st.DataObject) -> None:
    kind = GGMLQuantizationType[type.upper()]
    shape = (size[0], 32 * size[1])
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    stored = bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
    source = DenseTensor("w", dtype, stored)
    tensor = _blocks(quantized({"w": source}, type)["w"])
    packed = quants.quantize(source.numpy(), kind)
    assert (tensor.name, tensor.shape, tensor.dtype, tensor.type) == ("w", shape, type, kind)
    assert tensor.nbytes == packed.nbytes == shape[0] * shape[1] // 32 * GGML_QUANT_SIZES[kind][1]
    np.testing.assert_array_equal(tensor.blocks(), packed)
    np.testing.assert_array_equal(tensor.numpy(), quants.dequantize(packed, kind))
    order = np.array(data.draw(st.permutations(range(shape[0]))))
    np.testing.assert_array_equal(tensor.permute_rows(order).blocks(), packed[order])
    twice = tensor.permute_rows(order).permute_rows(order)
    np.testing.assert_array_equal(_blocks(twice).blocks(), packed[order][order])
    permuted = quantized({"w": source.permute_rows(order)}, type)["w"]
    np.testing.assert_array_equal(_blocks(permuted).blocks(), packed[order])


def test_a_matrix_of_many_slices() -> None:
    values = np.random.default_rng(0).standard_normal((700, 4096)).astype(np.float32)
    tensor = _blocks(quantized({"w": DenseTensor("w", "float32", values)}, "q4_0")["w"])
    np.testing.assert_array_equal(tensor.blocks(), quants.quantize(values, GGMLQuantizationType.Q4_0))


def test_what_is_no_float_matrix_of_whole_blocks_stays() -> None:
    random = np.random.default_rng(0)
    kind = GGMLQuantizationType.Q6_K
    tensors: dict[str, Tensor] = {
        "vector": DenseTensor("vector", "float32", np.ones(64, np.float32)),
        "cube": DenseTensor("cube", "float32", np.ones((2, 2, 64), np.float32)),
        "narrow": DenseTensor("narrow", "float32", np.ones((4, 33), np.float32)),
        "packed": QuantTensor("packed", (2, 256), kind, random_blocks("Q6_K", (2, 256), random)),
        "matrix": DenseTensor("matrix", "float16", np.ones((4, 64), np.float16)),
    }
    result = quantized(tensors, "q8_0")
    assert list(result) == list(tensors)
    assert [name for name, tensor in tensors.items() if result[name] is not tensor] == ["matrix"]


def test_nothing_is_read_before_it_is_asked_for() -> None:
    unreadable = np.broadcast_to(np.float32(1), (2**40, 2**20))  # 4 EiB
    tensor = quantized({"w": DenseTensor("w", "float32", unreadable)}, "q4_0")["w"]
    assert tensor.nbytes == 2**60 // 32 * 18


@pytest.mark.parametrize("type", ["q4_k", "q3", "Q4_0", "", "float16"])
def test_an_unknown_type_lists_those_that_can_be_made(type: str) -> None:
    words = re.escape(f"quantize={type!r}: choose one of q4_0, q4_1, q5_0, q5_1, q8_0")
    with pytest.raises(InputError, match=words):
        quantized({}, type)
    with pytest.raises(InputError, match=words):  # before files are searched
        open_checkpoint("/no/such/model", quantize=type)


def test_an_option_that_changes_nothing_says_why() -> None:
    packed = QuantTensor("w", (1, 32), GGMLQuantizationType.Q8_0, np.zeros((1, 34), np.uint8))
    with pytest.raises(InputError, match=r"quantized already \(q8_0\); leave"):
        quantized({"w": packed}, "q4_0")
    with pytest.raises(InputError, match="no multiple of 32 columns"):
        quantized({"w": DenseTensor("w", "float32", np.ones((32, 31), np.float32))}, "q4_0")


def test_every_format_opens_quantized(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    config = small_config()
    tensors = random_tensors(config, np.random.default_rng(0))
    write_hf(folder / "hf", config, tensors)
    write_gguf(folder / "m.gguf", config, tensors, "F32")
    hf, gguf = (open_checkpoint(path, quantize="q5_1").tensors for path in (folder / "hf", folder / "m.gguf"))
    assert {name for name, tensor in hf.items() if tensor.dtype == "q5_1"} == {
        name for name, tensor in hf.items() if len(tensor.shape) == 2
    }
    for name, tensor in hf.items():  # GGUF's q and k rows are permuted back before
        np.testing.assert_array_equal(gguf[name].numpy(), tensor.numpy())
