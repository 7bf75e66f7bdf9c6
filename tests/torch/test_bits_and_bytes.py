"""bitsandbytes' types: errors of weights are within their bounds, and programs compute with the quantized weights."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.bits_and_bytes import quantized, quantized_bytes
from torch_sessions import CONFIG, PagedBackend, Session, text

import mistral_portable as mp
from mistral_portable.boundary import BACKEND_QUANTIZE, ExecutorOptions, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import Case, Feed, Scenario, check, nmse, random_weights
from mistral_portable.weights import DenseTensor, Tensor

# Half of the widest gap between levels, relative to a block's largest magnitude.
BOUNDS = {"nf4": (1 - 0.6961928) / 2, "fp4": (1 - 2 / 3) / 2}
TYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def drawn(rows: int, columns: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("kind", BOUNDS)
@settings(max_examples=20)
@given(rows=st.integers(1, 6), blocks=st.integers(1, 4), dtype=TYPES, seed=st.integers(0, 2**31))
def test_4_bit_weights_are_within_the_published_bound(
    kind: str, rows: int, blocks: int, dtype: torch.dtype, seed: int
) -> None:
    weight = drawn(rows, 64 * blocks, dtype, seed)
    matrix = quantized(weight, kind)
    found = matrix.rows(torch.arange(rows))
    assert found.dtype == dtype
    largest = weight.float().reshape(-1, 64).abs().amax(1, keepdim=True)
    error = (found.float() - weight.float()).reshape(-1, 64).abs() / largest
    assert error.max() <= BOUNDS[kind] + torch.finfo(dtype).eps
    assert matrix.nbytes == quantized_bytes(weight.shape, kind)


@settings(max_examples=20)
@given(rows=st.integers(1, 6), columns=st.integers(1, 99), dtype=TYPES, seed=st.integers(0, 2**31))
def test_8_bit_weights_are_within_half_a_step(rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    weight = drawn(rows, columns, dtype, seed)
    matrix = quantized(weight, "int8")
    steps = weight.float().abs().amax(1, keepdim=True) / 127
    error = (matrix.rows(torch.arange(rows)).float() - weight.float()).abs() / steps
    rounding = 127 * max(torch.finfo(dtype).eps, torch.finfo(torch.float16).eps)  # the kernel rounds to float16
    assert error.max() <= 0.5 + rounding
    assert matrix.nbytes == quantized_bytes(weight.shape, "int8")


@pytest.mark.parametrize("kind", BACKEND_QUANTIZE)
@pytest.mark.parametrize("tokens", [1, 5])
def test_products(kind: str, tokens: int) -> None:
    matrix = quantized(drawn(24, 128, torch.float32, 0), kind)
    x, bias = drawn(tokens, 128, torch.float32, 1), drawn(1, 24, torch.float32, 2)[0]
    expected = x.double() @ matrix.rows(torch.arange(24)).double().T + bias.double()
    assert nmse(matrix.multiply(x, bias).numpy(), expected.numpy()) <= 1e-12


@pytest.mark.parametrize("kind", BACKEND_QUANTIZE)
def test_a_program_computes_with_quantized_weights_and_a_float_lm_head(kind: str) -> None:
    """Its logits equal those of a float program with the unpacked weights."""
    config, tokens = replace(CONFIG, intermediate_size=128), tuple(text(30))
    stored = random_weights(build(config), 0)
    unpacked: dict[str, Tensor] = dict(stored)
    for name, tensor in stored.items():
        if len(tensor.shape) == 2 and "embed" not in name and "head" not in name:
            matrix = quantized(torch.from_numpy(tensor.numpy()), kind)
            rows = matrix.rows(torch.arange(tensor.shape[0]))
            unpacked[name] = DenseTensor(name, "float32", rows.numpy())
    session = Session(config, quantize=kind)
    found = np.concatenate([session.begin(tokens[:20])[1], *(session.feed(0, [token]) for token in tokens[20:])])
    graph = select_rows(build(config), "logits")
    case = Case("unpacked", config, graph, unpacked, Scenario(((Feed(0, tokens, 30),),)))
    assert check(case, PagedBackend(), ExecutorOptions(dtype="float32")).status == "pass"
    other = Session(config, weights=unpacked, dtype="float32")
    assert nmse(found, other.begin(tokens)[1]) <= 1e-9


def test_logits_of_tiny_in_int8_are_near_those_in_float32() -> None:
    dense, small = (mp.load("tiny", backend="torch", quantize=kind) for kind in (None, "int8"))
    tokens = dense.tokenizer.encode("Once upon a time, there was a girl")
    assert 1e-9 < nmse(small.logits(tokens), dense.logits(tokens)) < 1e-2


@pytest.mark.parametrize(
    ("kind", "quantization", "message"),
    [("nf4", "q4_0", "quantize='nf4' changes nothing: the weights are quantized already"),
     ("fp4", None, "quantize='fp4': 96 columns are not a multiple of 64: choose int8 or q4_0")],
)  # fmt: skip
def test_weights_that_cannot_be_quantized_are_refused(kind: str, quantization: str | None, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        Session(quantization=quantization, quantize=kind)


def test_a_missing_bitsandbytes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(BackendError, match=r"quantize='nf4' needs bitsandbytes .*: pip install"):
        prepare(
            PagedBackend(),
            select_rows(build(CONFIG), "logits"),
            random_weights(build(CONFIG), 0),
            CacheSpec.from_config(CONFIG, max_context=9, page_size=256),
            ExecutorOptions(quantize="nf4"),
        )
