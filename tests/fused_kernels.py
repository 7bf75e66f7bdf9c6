"""Our Triton kernels for norms, rotations and SwiGLU against the reference: `python tests/fused_kernels.py`, in a
process of its own.

Compiled on a GPU; elsewhere interpreted slowly, with TRITON_INTERPRET=1, which Triton reads at its import.
"""

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.elementwise import Turn
from mistral_portable_torch.elementwise_kernels import add_rms_norm, rms_norm, rope_into, silu_mul
from numpy.typing import NDArray

from mistral_portable.config import QueryScale
from mistral_portable.graph import Rotation
from mistral_portable.reference import ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SIZES = st.sampled_from([1, 2, 7, 64, 100, 1000, 1025, 5120])
SEEDS = st.integers(0, 2**31)


def close(found: torch.Tensor, wanted: NDArray[Any], scale: float = 1.0) -> None:
    """Triton's interpreter rounds bfloat16 towards zero, so a rounding is off by up to an epsilon. scale: of the terms
    of which a result is the sum, which float32's own error is relative to."""
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.cpu().double(), torch.from_numpy(wanted), rtol=eps, atol=1e-5 * scale)


def columns(made: torch.Generator, rows: int, sizes: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """Random rows of several matrices that lie side by side, as a fused product's result."""
    both = torch.randn(rows, sum(sizes), generator=made).to(DEVICE, dtype)
    return list(both.split_with_sizes(sizes, dim=1))


def wide(x: torch.Tensor) -> NDArray[np.float64]:
    made: NDArray[np.float64] = x.cpu().double().numpy()
    return made


@settings(max_examples=30, deadline=None)  # Triton's interpreter runs each in Python
@given(st.integers(0, 4), SIZES, st.sampled_from([1e-6, 1e-5, 0.3]), DTYPES, SEEDS)
def check_norms(rows: int, size: int, eps: float, dtype: torch.dtype, seed: int) -> None:
    """The norm is that of the sum as it was rounded."""
    made = torch.Generator().manual_seed(seed)
    a, b = columns(made, rows, [size, size], dtype)
    weight = torch.randn(size, generator=made).to(DEVICE, dtype)
    close(rms_norm(a, weight, eps), ops.rms_norm(wide(a), wide(weight), eps))
    total, normed = add_rms_norm(a, b, weight, eps)
    close(total, wide(a) + wide(b))
    close(normed, ops.rms_norm(wide(total), wide(weight), eps))
    if dtype != torch.bfloat16 or DEVICE.type == "cuda":
        assert torch.equal(total, a + b)


@settings(max_examples=30, deadline=None)  # Triton's interpreter runs each in Python
@given(st.integers(0, 4), SIZES, st.sampled_from([1.0, 30.0, 1000.0]), DTYPES, SEEDS)
def check_silu(rows: int, size: int, scale: float, dtype: torch.dtype, seed: int) -> None:
    """Also where exp(-gate) is more than float32 holds."""
    gate, up = columns(torch.Generator().manual_seed(seed), rows, [size, size], dtype)
    gate *= scale
    close(silu_mul(gate, up), ops.silu_mul(wide(gate), wide(up)))


@settings(max_examples=40, deadline=None)  # Triton's interpreter runs each in Python
@given(
    tokens=st.integers(1, 4),
    groups=st.integers(1, 9),
    shared=st.integers(1, 5),
    half=st.sampled_from([1, 3, 4, 20, 64, 128]),
    page=st.sampled_from([1, 3, 16]),
    queries_grow=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
)
def check_rotations(
    tokens: int, groups: int, shared: int, half: int, page: int, queries_grow: bool, dtype: torch.dtype, seed: int
) -> None:
    """Keys and values get to their slots, wherever these are, and to no others."""
    made, numbers = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    heads, size = groups * shared, 2 * half
    q, k, v = columns(made, tokens, [heads * size, groups * size, groups * size], dtype)
    frequencies = tuple(10000.0 ** (-j / half) for j in range(half))
    rotations = [Rotation(frequencies, 1.5, QueryScale(0.1, 100) if queries_grow else None), Rotation(frequencies, 1.5)]
    positions = numbers.integers(0, 20_000, tokens).astype(np.int32)
    turns = [Turn(*(torch.from_numpy(t).to(DEVICE) for t in own.signed_table(positions))) for own in rotations]
    keys, values = (torch.full((7, page, groups, size), torch.nan, dtype=dtype, device=DEVICE) for _ in range(2))
    slots = torch.randperm(7 * page, generator=made)[:tokens].to(DEVICE)
    found = rope_into(q, k, v, (turns[0], turns[1]), keys, values, slots)
    close(found, ops.rope(wide(q), positions, rotations[0]), 10)
    close(keys.flatten(0, 1)[slots].flatten(1), ops.rope(wide(k), positions, rotations[1]), 10)
    assert torch.equal(values.flatten(0, 1)[slots].flatten(1), v)
    others = torch.ones(7 * page, dtype=torch.bool, device=DEVICE).index_fill(0, slots, False)
    assert keys.flatten(0, 1)[others].isnan().all()
    assert values.flatten(0, 1)[others].isnan().all()


def check_nan() -> None:
    """A NaN stays in its row, and an infinite gate is what torch makes of it."""
    x = torch.ones(3, 64, device=DEVICE)
    x[1, 5], x[2, 7], x[2, 8] = torch.nan, torch.inf, -torch.inf
    for found in (rms_norm(x, x[0], 1e-5), *add_rms_norm(x, x, x[0], 1e-5), silu_mul(x, x)):
        assert found[0].isfinite().all()
        assert found[1].isnan().any()
    torch.testing.assert_close(silu_mul(x, x), torch.nn.functional.silu(x) * x, equal_nan=True)


if __name__ == "__main__":
    check_nan()
    check_norms()
    check_silu()
    check_rotations()
