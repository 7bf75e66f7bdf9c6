"""RMS norm, RoPE and SwiGLU on some rows at a time, as on a CPU, give what they give on all rows at once."""

import subprocess
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mistral_portable_torch.elementwise import Elementwise, elementwise


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_rows_give_the_same_results(tokens: int, dtype: torch.dtype) -> None:
    """Also with as many columns as tokens, and on the two halves of a fused result."""
    made = torch.Generator().manual_seed(tokens)
    both, weight = torch.randn(tokens, 2 * tokens, generator=made).to(dtype), torch.randn(tokens, generator=made)
    gate, up = both[:, :tokens], both[:, tokens:]
    heads = torch.randn(tokens, 3 * 8, generator=made).to(dtype)
    cos, sin = torch.randn(2, tokens, 1, 2, 4, generator=made)
    pieces, whole = elementwise("cpu"), elementwise("mps")
    assert torch.equal(pieces.silu_mul(gate, up), whole.silu_mul(gate, up))
    assert torch.equal(pieces.rope(heads, cos, sin), whole.rope(heads, cos, sin))
    torch.testing.assert_close(pieces.rms_norm(gate, weight, 1e-5), whole.rms_norm(gate, weight, 1e-5))


@pytest.mark.parametrize("error", [RuntimeError("Failed to find C compiler"), subprocess.CalledProcessError(1, "gcc")])
def test_kernels_that_cannot_be_compiled_are_replaced_and_one_warning_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def compile_(function: Callable[..., torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        def fail(*arguments: Any) -> torch.Tensor:
            tried.append(function)
            raise error

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    on_gpu, plain = Elementwise("cuda"), elementwise("mps")
    x, weight = torch.randn(3, 8), torch.randn(8)
    with pytest.warns(UserWarning, match="several kernels each, which is slow, because kernels cannot .*: install"):
        assert torch.equal(on_gpu.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(on_gpu.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
        assert torch.equal(on_gpu.silu_mul(x, x), plain.silu_mul(x, x))
    assert len(tried) == 1
