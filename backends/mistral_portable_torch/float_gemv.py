"""Products of 1 to 4 tokens with matrices of float16 or bfloat16, in Triton: weights are read once for all tokens.

A program takes some rows and goes along them. A thread loads 8 columns side by side, 16 bytes, of each row and each
token, and adds up their products; the sums of all threads are added up at the end. Sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.gated import rows_of, write

__all__ = ["multiply"]

_ROWS = 4
_COLUMNS = {1: 1024, 2: 1024, 4: 2048}
"""Columns of a pass, by the power of two that the tokens fill.

4,096 rows are 1,024 programs, 8 for each multiprocessor of an H100, which has registers for 8 of 1 or 2 tokens: all run
at once, with 64 KB on their way. Of 4 tokens it has registers for 4, which need the wider passes for as much.
"""


def multiply(x: Tensor, weight: Tensor, *, gated: bool = False) -> Tensor:
    """x [T, I], T <= 4, weight [O, I] of the same dtype -> [T, O] in x's dtype, summed in float32. gated: [T, O / 2],
    SwiGLU of the upper and the lower rows' products."""
    tokens, (rows, inputs) = len(x), weight.shape
    out = torch.empty(tokens, rows // 2 if gated else rows, dtype=x.dtype, device=x.device)
    padded = triton.next_power_of_2(tokens)
    _float_gemv[(triton.cdiv(rows, _ROWS),)](
        x.contiguous(), weight, out, tokens, rows, inputs,
        TOKENS=padded, ROWS=_ROWS, COLUMNS=_COLUMNS[padded], GATED=gated, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens"])
def _float_gemv(
    x, weight, out, tokens, rows, inputs, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    row, token, column = rows_of(tl.arange(0, ROWS), rows, ROWS, GATED), tl.arange(0, TOKENS), tl.arange(0, COLUMNS)
    own = weight + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * inputs + column[None, :]
    given = x + token[:, None] * inputs + column[None, :]
    total = tl.zeros((TOKENS, ROWS, COLUMNS // 8), tl.float32)
    for first in range(0, inputs, COLUMNS):
        known = (column < inputs - first)[None, :]
        weights = tl.load(own + first, mask=known, other=0.0).to(tl.float32)
        values = tl.load(given + first, mask=known & (token < tokens)[:, None], other=0.0).to(tl.float32)
        products = weights.reshape(1, ROWS, COLUMNS // 8, 8) * values.reshape(TOKENS, 1, COLUMNS // 8, 8)
        total += tl.sum(products, 3)
    write(tl.sum(total, 2), out, tokens, rows, TOKENS, ROWS, GATED)
