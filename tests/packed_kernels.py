"""Triton's kernels for packed weights against unpacked ones: `python tests/packed_kernels.py`, in a process of its own.

Compiled on a GPU; elsewhere interpreted slowly, with TRITON_INTERPRET=1, which Triton reads at its import.
"""

import numpy as np
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch import gemv, tiles
from mistral_portable_torch.elementwise_kernels import silu_mul
from mistral_portable_torch.ggml import LAYOUTS
from mistral_portable_torch.packed import Packed
from mistral_portable_torch.planes import Planes
from mistral_portable_torch.unpacking import unpack
from weights.files import random_blocks

from mistral_portable.testing import nmse
from mistral_portable.weights import QuantTensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KINDS = list(LAYOUTS)
# Blocks of 32 or 256 columns; 130 groups of 32 are more than a program of `gemv` takes at a time.
BLOCKS = st.one_of(st.integers(1, 5), st.just(130))
SEEDS = st.integers(0, 2**31)


def drawn(kind: str, rows: int, blocks: int, random: np.random.Generator) -> tuple[QuantTensor, Planes]:
    """A random matrix, and its planes on the device."""
    columns = LAYOUTS[kind].columns * (blocks if LAYOUTS[kind].columns == 32 else min(blocks, 17))
    stored = random_blocks(kind.upper(), (rows, columns), random)
    planes = Planes.empty(kind, (rows, columns), DEVICE)
    planes.fill(torch.from_numpy(stored).to(DEVICE))
    return QuantTensor("w", (rows, columns), GGMLQuantizationType[kind.upper()], stored), planes


def check(x: torch.Tensor, found: torch.Tensor, weights: np.ndarray) -> None:
    expected = x.double().cpu().numpy() @ weights.T
    assert found.dtype == x.dtype
    # The result is rounded once; by the interpreter towards zero, so by up to one epsilon.
    assert nmse(found.float().cpu().numpy(), expected) <= max(torch.finfo(x.dtype).eps ** 2, 1e-10)


@settings(max_examples=40, deadline=None)  # Triton's interpreter runs each in Python
@given(
    kind=st.sampled_from(KINDS),
    tokens=st.integers(1, gemv.MAX_TOKENS),
    rows=st.integers(1, 9),
    blocks=BLOCKS,
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=SEEDS,
)
def check_few_tokens(kind: str, tokens: int, rows: int, blocks: int, dtype: torch.dtype, seed: int) -> None:
    random = np.random.default_rng(seed)
    stored, planes = drawn(kind, rows, blocks, random)
    x = torch.from_numpy(random.standard_normal((tokens, stored.shape[1]))).to(DEVICE, dtype)
    check(x, gemv.multiply(x, planes), stored.numpy(np.float64))


@settings(max_examples=15, deadline=None)  # Triton's interpreter runs each in Python
@given(
    kind=st.sampled_from(KINDS),
    tokens=st.integers(1, gemv.MAX_GATED),
    half=st.integers(1, 9),
    blocks=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=SEEDS,
)
def check_swiglu(kind: str, tokens: int, half: int, blocks: int, dtype: torch.dtype, seed: int) -> None:
    """Products are rounded as those that are written are."""
    random = np.random.default_rng(seed)
    stored, planes = drawn(kind, 2 * half, blocks, random)
    x = torch.from_numpy(random.standard_normal((tokens, stored.shape[1]))).to(DEVICE, dtype)
    expected = silu_mul(*gemv.multiply(x, planes).chunk(2, dim=1))
    torch.testing.assert_close(gemv.multiply(x, planes, gated=True), expected)


@settings(max_examples=40, deadline=None)  # Triton's interpreter runs each in Python
@given(
    kind=st.sampled_from(KINDS),
    tokens=st.integers(1, tiles.MAX_TOKENS),
    rows=st.integers(1, 70),
    blocks=BLOCKS,
    dtype=st.sampled_from(tiles.DTYPES),
    seed=SEEDS,
)
def check_some_tokens(kind: str, tokens: int, rows: int, blocks: int, dtype: torch.dtype, seed: int) -> None:
    """The weights are those that are unpacked in the tokens' type."""
    random = np.random.default_rng(seed)
    stored, planes = drawn(kind, rows, blocks, random)
    x = torch.from_numpy(random.standard_normal((tokens, stored.shape[1]))).to(DEVICE, dtype)
    check(x, tiles.multiply(x, planes), unpack(planes, dtype).double().cpu().numpy())


@settings(max_examples=40, deadline=None)  # Triton's interpreter runs each in Python
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 9),
    blocks=BLOCKS,
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=SEEDS,
)
def check_unpacking(kind: str, rows: int, blocks: int, dtype: torch.dtype, seed: int) -> None:
    stored, planes = drawn(kind, rows, blocks, np.random.default_rng(seed))
    expected = stored.numpy()
    found = unpack(planes, dtype).float().cpu().numpy()
    # A compiler may join a product and a difference, which leaves out the rounding between them.
    largest = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(
        found, expected, rtol=torch.finfo(dtype).eps, atol=1e-6 * largest + torch.finfo(dtype).tiny
    )


@settings(max_examples=15, deadline=None)  # Triton's interpreter runs each in Python
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 4),
    rows=st.integers(1, 5),
    chosen=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    seed=SEEDS,
)
def check_chosen_experts(kind: str, count: int, rows: int, chosen: list[int], seed: int) -> None:
    """Experts are stacked by rows; some are chosen more than once."""
    stored, planes = drawn(kind, count * rows, 2, np.random.default_rng(seed))
    indices = [index % count for index in chosen]
    found = Packed(planes, torch.float32).some_of(torch.tensor(indices, device=DEVICE), count)
    expected = stored.numpy().reshape(count, rows, -1)[indices]
    # A compiler may round a scale times a code, less a minimum, once, where NumPy rounds twice, in float32.
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(initial=0))


if __name__ == "__main__":
    check_few_tokens()
    check_swiglu()
    check_some_tokens()
    check_unpacking()
    check_chosen_experts()
