"""Triton's kernels against products of unpacked weights: `python tests/gemv_products.py`, in a process of its own.

Compiled on a GPU; elsewhere interpreted slowly, with TRITON_INTERPRET=1, which Triton reads at its import.
"""

import numpy as np
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.gemv import KINDS, multiply
from mistral_portable_torch.unpacking import KINDS as UNPACKED_KINDS
from mistral_portable_torch.unpacking import unpack
from weights.files import random_blocks

from mistral_portable.testing import nmse
from mistral_portable.weights import QuantTensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@settings(max_examples=24, deadline=None)  # Triton's interpreter runs each in Python
@given(
    kind=st.sampled_from(KINDS),
    tokens=st.integers(1, 3),
    rows=st.integers(1, 9),
    blocks=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def check_products(kind: str, tokens: int, rows: int, blocks: int, dtype: torch.dtype, seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = 256 * blocks
    stored = QuantTensor(
        "w", (rows, columns), GGMLQuantizationType[kind.upper()], random_blocks(kind.upper(), (rows, columns), random)
    )
    x = torch.from_numpy(random.standard_normal((tokens, columns))).to(DEVICE, dtype)
    expected = x.double().cpu().numpy() @ stored.numpy(np.float64).T
    found = multiply(x, torch.from_numpy(stored.blocks().copy()).to(DEVICE), kind)
    assert found.dtype == dtype
    # The result is rounded once; by the interpreter towards zero, so by up to one epsilon.
    assert nmse(found.float().cpu().numpy(), expected) <= max(torch.finfo(dtype).eps ** 2, 1e-10)


@settings(max_examples=24, deadline=None)  # Triton's interpreter runs each in Python
@given(
    kind=st.sampled_from(UNPACKED_KINDS),
    rows=st.integers(1, 9),
    blocks=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def check_unpacking(kind: str, rows: int, blocks: int, dtype: torch.dtype, seed: int) -> None:
    stored = QuantTensor(
        "w",
        (rows, 256 * blocks),
        GGMLQuantizationType[kind.upper()],
        random_blocks(kind.upper(), (rows, 256 * blocks), np.random.default_rng(seed)),
    )
    expected = stored.numpy()
    found = unpack(torch.from_numpy(stored.blocks().copy()).to(DEVICE), kind, dtype).float().cpu().numpy()
    # A compiler may join a product and a difference, which leaves out the rounding between them.
    largest = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(
        found, expected, rtol=torch.finfo(dtype).eps, atol=1e-6 * largest + torch.finfo(dtype).tiny
    )


if __name__ == "__main__":
    check_products()
    check_unpacking()
