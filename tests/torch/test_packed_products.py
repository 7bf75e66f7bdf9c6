"""Products with ggml blocks where Triton's kernels are there, by stand-ins for them, and where they do not compile."""

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from mistral_portable_torch import matrices
from mistral_portable_torch.attempt import Attempt
from mistral_portable_torch.ggml import LAYOUTS
from mistral_portable_torch.matrices import Blocks
from weights.files import random_blocks

from mistral_portable.weights import QuantTensor

# float32 sums of 512 products, which torch and NumPy add up in different orders.
CLOSE: Any = {"rtol": 1e-4, "atol": 1e-4}
STORED = QuantTensor(
    "w", (24, 512), GGMLQuantizationType.Q4_0, random_blocks("Q4_0", (24, 512), np.random.default_rng(0))
)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU's kernels. calls: the names of those that were called. error: what they raise, if anything."""
    made = SimpleNamespace(calls=[], error=None)

    def unpack(blocks: torch.Tensor, kind: str, dtype: torch.dtype) -> torch.Tensor:
        made.calls.append("unpack")
        if made.error is not None:
            raise made.error
        return LAYOUTS[kind].rows(blocks, dtype)

    def gemv(x: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        made.calls.append("gemv")
        if made.error is not None:
            raise made.error
        return x @ LAYOUTS["q4_0"].rows(blocks, x.dtype).T

    monkeypatch.setitem(sys.modules, "mistral_portable_torch.unpacking", SimpleNamespace(unpack=unpack))
    monkeypatch.setattr("mistral_portable_torch.unpacking", SimpleNamespace(unpack=unpack), raising=False)
    monkeypatch.setattr(matrices, "gemv_of", lambda kind: gemv)
    monkeypatch.setattr(matrices, "_PACKED", Attempt("quantized weights are unpacked for every token, which is slow"))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return made


def product(tokens: int, bias: bool) -> tuple[Any, Any]:
    x = torch.randn(tokens, 512, generator=torch.Generator().manual_seed(1))
    added = torch.ones(24) if bias else None
    matrix = Blocks(torch.from_numpy(STORED.blocks().copy()), "q4_0", torch.float32)
    expected = x.numpy() @ STORED.numpy().T + (1 if bias else 0)
    return matrix.multiply(x, added).numpy(), expected


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "called"), [(1, "gemv"), (8, "gemv"), (9, "unpack"), (40, "unpack")])
def test_few_tokens_read_blocks_and_many_unpack_them_once(
    tokens: int, called: str, bias: bool, kernels: SimpleNamespace
) -> None:
    found, expected = product(tokens, bias)
    np.testing.assert_allclose(found, expected, **CLOSE)
    assert kernels.calls == [called]


@pytest.mark.parametrize("tokens", [1, 9])
def test_products_without_kernels_are_right_and_one_warning_says_why(tokens: int, kernels: SimpleNamespace) -> None:
    kernels.error = RuntimeError("Failed to find C compiler. Please specify via CC environment variable")
    with pytest.warns(
        UserWarning, match=r"unpacked for every token, which is slow, because .* \(Failed to find C comp"
    ):
        np.testing.assert_allclose(*product(tokens, True), **CLOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(*product(10 - tokens, False), **CLOSE)
    assert len(kernels.calls) == 1
