"""Rounding to half types, bit for bit as torch does it."""

import numpy as np
import pytest
import torch

from mistral_portable.testing.rounding import round_to


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_round_to_is_torchs_conversion(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = np.concatenate([x[np.isfinite(x)], np.arange(2**10, dtype=np.uint32).view(np.float32), [0.0, -0.0]])
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        mine = round_to(x, dtype)
    theirs = torch.from_numpy(x).to(getattr(torch, dtype)).to(torch.float32).numpy()
    np.testing.assert_array_equal(mine.view(np.uint32), theirs.view(np.uint32))
