"""Our Triton kernel for few tokens and float matrices against float64: `python tests/float_kernels.py`, in a process of
its own.

Compiled on a GPU; elsewhere interpreted slowly, with TRITON_INTERPRET=1, which Triton reads at its import.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch import float_gemv
from mistral_portable_torch.elementwise_kernels import silu_mul
from mistral_portable_torch.faster import DTYPES, MAX_TOKENS

from mistral_portable.testing import nmse

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawn(tokens: int, rows: int, columns: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and a matrix on the device."""
    made = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(count, columns, generator=made).to(DEVICE, dtype) for count in (tokens, rows))
    return x, weight


@settings(max_examples=60, deadline=None)  # Triton's interpreter runs each in Python
@given(
    tokens=st.integers(1, MAX_TOKENS),
    rows=st.integers(1, 9),
    # A program takes 1,024 or 2,048 columns at a time; where they are no multiple of 16, it loads them one by one.
    columns=st.one_of(st.integers(1, 40), st.sampled_from([64, 1000, 1024, 1025, 2048, 2500])),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def check_products(tokens: int, rows: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    x, weight = drawn(tokens, rows, columns, dtype, seed)
    found = float_gemv.multiply(x, weight)
    expected = x.double() @ weight.double().T
    assert found.dtype == dtype
    # The result is rounded once; by the interpreter towards zero, so by up to one epsilon.
    assert nmse(found.double().cpu().numpy(), expected.cpu().numpy()) <= torch.finfo(dtype).eps ** 2


@settings(max_examples=15, deadline=None)  # Triton's interpreter runs each in Python
@given(
    tokens=st.integers(1, MAX_TOKENS),
    half=st.integers(1, 9),
    columns=st.sampled_from([7, 64, 1025]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def check_swiglu(tokens: int, half: int, columns: int, dtype: torch.dtype, seed: int) -> None:
    """Products are rounded as those that are written are."""
    x, weight = drawn(tokens, 2 * half, columns, dtype, seed)
    expected = silu_mul(*float_gemv.multiply(x, weight).chunk(2, dim=1))
    torch.testing.assert_close(float_gemv.multiply(x, weight, gated=True), expected)


def check_nan() -> None:
    """NaN stays in its token, and in its row."""
    x, weight = drawn(3, 6, 1500, torch.bfloat16, 0)
    x[1, 1499] = weight[5, 3] = torch.nan
    found = float_gemv.multiply(x, weight).isnan()
    assert found[1].all()
    assert found[:, 5].all()
    assert found.sum() == 3 + 6 - 1


if __name__ == "__main__":
    check_nan()
    check_products()
    check_swiglu()
