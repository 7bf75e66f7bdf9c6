"""RMS norm, RoPE and SwiGLU: on some rows at a time, as on a CPU, and as kernels of ours, as on CUDA."""

import subprocess
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mistral_portable_torch.elementwise import Fused, Plain, Turn, elementwise
from triton_process import needs_triton, run_checks


@needs_triton
def test_the_kernels_give_what_the_reference_does() -> None:
    run_checks("fused_kernels.py")


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_rows_give_the_same_results(tokens: int, dtype: torch.dtype) -> None:
    """Also with as many columns as tokens, and on the two halves of a fused result."""
    made = torch.Generator().manual_seed(tokens)
    both, weight = torch.randn(tokens, 2 * tokens, generator=made).to(dtype), torch.randn(tokens, generator=made)
    gate, up = both[:, :tokens], both[:, tokens:]
    heads = torch.randn(tokens, 3 * 8, generator=made).to(dtype)
    turn = Turn(*torch.randn(2, tokens, 1, 2, 4, generator=made))
    pieces, whole = elementwise("cpu"), elementwise("mps")
    assert torch.equal(pieces.silu_mul(gate, up), whole.silu_mul(gate, up))
    assert torch.equal(pieces.rope(heads, turn), whole.rope(heads, turn))
    torch.testing.assert_close(pieces.rms_norm(gate, weight, 1e-5), whole.rms_norm(gate, weight, 1e-5))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are tried, none of which can be compiled."""
    tried: list[str] = []

    def failing(name: str) -> Any:
        def fail(*arguments: Any) -> None:
            tried.append(name)
            raise subprocess.CalledProcessError(1, "gcc")

        return fail

    module = SimpleNamespace(**{name: failing(name) for name in ("rms_norm", "add_rms_norm", "rope_into", "silu_mul")})
    monkeypatch.setitem(sys.modules, "mistral_portable_torch.elementwise_kernels", module)
    monkeypatch.setattr("mistral_portable_torch.elementwise_kernels", module, raising=False)
    return tried


def test_kernels_that_cannot_be_compiled_are_replaced_and_one_warning_says_so(calls: list[str]) -> None:
    on_gpu, plain = Fused(Plain()), Plain()
    x, weight, slots = torch.randn(3, 8), torch.randn(8), torch.tensor([2, 0, 5])
    turn = Turn(*torch.randn(2, 3, 1, 2, 2))
    with pytest.warns(UserWarning, match="several kernels each, which is slow, because kernels cannot .*: install"):
        assert torch.equal(on_gpu.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total, normed = on_gpu.add_rms_norm(x, x + 1, weight, 1e-5)
        assert torch.equal(total, x + (x + 1))
        assert torch.equal(normed, plain.rms_norm(total, weight, 1e-5))
        assert torch.equal(on_gpu.silu_mul(x, x), plain.silu_mul(x, x))
        pools = torch.zeros(2, 2, 3, 2, 4)
        assert torch.equal(on_gpu.rope_into(x, x, x, (turn, turn), pools[0], pools[1], slots), plain.rope(x, turn))
        assert torch.equal(pools[0].flatten(0, 1)[slots].flatten(1), plain.rope(x, turn))
        assert torch.equal(pools[1].flatten(0, 1)[slots].flatten(1), x)
        assert pools[1].count_nonzero() == x.numel()
    assert calls == ["rms_norm"]


def test_a_cuda_gpu_tries_the_kernels(calls: list[str]) -> None:
    with pytest.warns(UserWarning, match="kernels cannot be compiled"):
        elementwise.__wrapped__("cuda").silu_mul(torch.ones(1, 2), torch.ones(1, 2))
    assert calls == ["silu_mul"]
