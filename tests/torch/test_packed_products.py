"""Products with packed weights: which of Triton's kernels is called, by stand-ins, and what is done without them."""

import sys
import warnings
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from mistral_portable_torch import matrices, packed
from mistral_portable_torch.attempt import Attempt
from mistral_portable_torch.elementwise import Plain
from mistral_portable_torch.matrices import Blocks, read_matrix
from mistral_portable_torch.packed import Packed, has_kernels
from mistral_portable_torch.planes import Planes
from weights.files import random_blocks

from mistral_portable.weights import QuantTensor

STORED = QuantTensor(
    "w", (24, 512), GGMLQuantizationType.Q4_0, random_blocks("Q4_0", (24, 512), np.random.default_rng(0))
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU's kernels. calls: the modules of those that were called. error: what they raise, if anything."""
    made = SimpleNamespace(calls=[], error=None)

    def called(name: str) -> None:
        made.calls.append(name)
        if made.error is not None:
            raise made.error

    def unpack(planes: Planes, dtype: torch.dtype) -> torch.Tensor:
        called("unpacking")
        return planes.weights(dtype)

    def product(name: str, x: torch.Tensor, planes: Planes, gated: bool = False) -> torch.Tensor:
        called(name)
        made = x @ planes.weights(x.dtype).T
        return Plain().silu_mul(*made.chunk(2, dim=1)) if gated else made

    modules = {
        "gemv": SimpleNamespace(MAX_TOKENS=4, MAX_GATED=2, multiply=partial(product, "gemv")),
        "tiles": SimpleNamespace(
            MAX_TOKENS=64,
            DTYPES=(torch.float16, torch.bfloat16),
            multiply=lambda x, planes: product("tiles", x, planes),
        ),
        "unpacking": SimpleNamespace(unpack=unpack),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"mistral_portable_torch.{name}", module)
        monkeypatch.setattr(f"mistral_portable_torch.{name}", module, raising=False)
    monkeypatch.setattr(matrices, "has_kernels", lambda device: True)
    monkeypatch.setattr(packed, "_COMPILED", Attempt("quantized weights are unpacked for every token, which is slow"))
    monkeypatch.setattr(packed, "_TILES", Attempt("weights are unpacked for every 5 to 64 tokens, which is slow"))
    return made


def product(tokens: int, bias: bool, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    x = torch.randn(tokens, 512, generator=torch.Generator().manual_seed(1)).to(dtype)
    matrix = read_matrix([STORED], dtype, CPU)
    assert isinstance(matrix, Packed)
    found = matrix.multiply(x, torch.ones(24, dtype=dtype) if bias else None)
    return found.float().numpy(), x.float().numpy() @ STORED.numpy().T + (1 if bias else 0)


def check(found: Any, expected: Any, dtype: torch.dtype) -> None:
    # Sums of 512 products, whose weights and results bfloat16 rounds to 8 bits; float32 sums in another order.
    error = 1e-4 if dtype is torch.float32 else 2**-8
    np.testing.assert_allclose(found, expected, rtol=2 * error, atol=error * np.abs(expected).max())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tokens", "called"),
    [
        *(
            (torch.bfloat16, *case)
            for case in ((1, "gemv"), (4, "gemv"), (5, "tiles"), (64, "tiles"), (65, "unpacking"))
        ),
        *((torch.float32, *case) for case in ((1, "gemv"), (4, "gemv"), (5, "unpacking"), (65, "unpacking"))),
    ],
)
def test_the_kernel_follows_from_the_number_of_tokens(
    dtype: torch.dtype, tokens: int, called: str, bias: bool, kernels: SimpleNamespace
) -> None:
    check(*product(tokens, bias, dtype), dtype)
    assert kernels.calls == [called]


@pytest.mark.parametrize("tokens", [1, 9])
def test_products_without_kernels_are_right_and_one_warning_says_why(tokens: int, kernels: SimpleNamespace) -> None:
    kernels.error = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    with pytest.warns(
        UserWarning, match=r"unpacked for every token, which is slow, because .* \(Failed to find C comp"
    ):
        np.testing.assert_allclose(*product(tokens, True), rtol=1e-4, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(*product(10 - tokens, False), rtol=1e-4, atol=1e-4)
    assert len(kernels.calls) == 1


def test_a_gpu_too_small_for_one_kernel_keeps_the_others(kernels: SimpleNamespace, monkeypatch: Any) -> None:
    """Tiles take the most shared memory. Triton's OutOfResources is a TritonError."""
    errors = SimpleNamespace(TritonError=type("OutOfResources", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "triton.errors", errors)

    def too_large(x: torch.Tensor, planes: Planes) -> torch.Tensor:
        raise errors.TritonError("out of resource: shared memory, Required: 69632, Hardware limit: 65536")

    monkeypatch.setattr(sys.modules["mistral_portable_torch.tiles"], "multiply", too_large)
    with pytest.warns(UserWarning, match=r"every 5 to 64 tokens, .* \(out of resource: shared memory, Required: 69632"):
        check(*product(64, True, torch.bfloat16), torch.bfloat16)
    for tokens, called in ((64, "unpacking"), (1, "gemv"), (65, "unpacking")):
        kernels.calls.clear()
        check(*product(tokens, True, torch.bfloat16), torch.bfloat16)
        assert kernels.calls == [called]


def test_blocks_stay_as_they_are_on_a_cpu() -> None:
    assert isinstance(read_matrix([STORED], torch.float32, CPU), Blocks)


def test_blocks_are_repacked_where_triton_is(monkeypatch: pytest.MonkeyPatch) -> None:
    has_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    assert has_kernels(CUDA)
    assert not has_kernels(CPU)
    has_kernels.cache_clear()


def test_triton_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    has_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.warns(UserWarning, match=r"because Triton is missing .*: pip install triton"):
        assert not has_kernels(CUDA)
    has_kernels.cache_clear()


def test_swiglu_is_made_in_the_kernel_for_few_tokens(kernels: SimpleNamespace) -> None:
    matrix = read_matrix([STORED], torch.bfloat16, CPU)
    assert isinstance(matrix, Packed)
    for tokens in (1, 2):
        x = torch.randn(tokens, 512, generator=torch.Generator().manual_seed(tokens)).to(torch.bfloat16)
        found, halves = matrix.gated(x), matrix.multiply(x, None).chunk(2, dim=1)
        assert found is not None
        assert torch.equal(found, Plain().silu_mul(*halves))
    assert kernels.calls == ["gemv"] * 4
    assert matrix.gated(torch.ones(3, 512, dtype=torch.bfloat16)) is None
    kernels.error = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    with pytest.warns(UserWarning, match="unpacked for every token"):
        assert matrix.gated(x) is None


def test_rows_and_chosen_experts_are_unpacked_by_the_kernel(kernels: SimpleNamespace) -> None:
    """Where it cannot be compiled, by torch's operations."""
    matrix, weights = read_matrix([STORED], torch.float32, CPU), STORED.numpy()
    assert isinstance(matrix, Packed)
    indices = torch.tensor([2, 0, 2])

    def check_all() -> None:
        np.testing.assert_array_equal(matrix.rows(indices).numpy(), weights[[2, 0, 2]])
        np.testing.assert_array_equal(matrix.some_of(indices, 3).numpy(), weights.reshape(3, 8, 512)[[2, 0, 2]])

    check_all()
    assert kernels.calls == ["unpacking"] * 2
    kernels.error = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    with pytest.warns(UserWarning, match="unpacked for every token"):
        check_all()
    assert kernels.calls == ["unpacking"] * 3
