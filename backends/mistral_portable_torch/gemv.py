"""Products of 1 to 4 tokens with packed weights, in Triton: weights are read once for all tokens.

A product of one token is bound by the bandwidth of the weights. A program takes some rows and goes along them; a thread
has groups of 32 columns, adds up their products, and multiplies each sum by the group's scale. Sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.codes import arguments, constants, numbers, scale_of
from mistral_portable_torch.gated import rows_of, write
from mistral_portable_torch.planes import GROUP, Planes

__all__ = ["MAX_GATED", "MAX_TOKENS", "multiply"]

MAX_TOKENS = 4
"""Each token more takes as many multiplications as the first, which then bound the kernel in place of the memory."""

MAX_GATED = 2
"""With SwiGLU in the kernel: products of 4 tokens, which take all registers, would spill some on a GPU of 8.6."""

_ROWS = 4
_GROUPS = 128


def multiply(x: Tensor, planes: Planes, *, gated: bool = False) -> Tensor:
    """x [T, I], T <= 4, planes of a matrix [O, I] -> [T, O] in x's dtype, summed in float32. gated: [T, O / 2], SwiGLU
    of the upper and the lower rows' products."""
    tokens, (rows, inputs) = len(x), planes.shape
    out = torch.empty(tokens, rows // 2 if gated else rows, dtype=x.dtype, device=x.device)
    _gemv[(triton.cdiv(rows, _ROWS),)](
        x.contiguous(), *arguments(planes), out, tokens, rows, inputs // GROUP, **constants(planes),
        TOKENS=triton.next_power_of_2(tokens), ROWS=_ROWS, GROUPS=_GROUPS, GATED=gated, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens"])
def _gemv(
    x, low, high, scales, minima, d, dmin, levels, out, tokens, rows, groups,
    LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, LEVELS: tl.constexpr, HALVES: tl.constexpr,
    MINIMA: tl.constexpr, PRODUCTS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    row, token = rows_of(tl.arange(0, ROWS), rows, ROWS, GATED), tl.arange(0, TOKENS)
    word, scale = tl.arange(0, GROUPS * 4), tl.arange(0, ROWS * GROUPS)
    # The compiler lets a thread load what it sees to be in a row: here 4 words of any type, and 4 numbers of x. So a
    # thread has the same groups of all tiles, and threads exchange nothing.
    words = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * groups * 4 + (word // 4 * 4 + word % 4)[None, :]
    given = x + token[:, None] * groups * 32 + (word // 4 * 32 + word % 4)[None, :]
    scaled = tl.minimum(rows_of(scale // GROUPS, rows, ROWS, GATED), rows - 1).to(tl.int64) * groups
    total = tl.zeros((TOKENS, ROWS, GROUPS, 1), tl.float32)
    for first in range(0, groups, GROUPS):
        known = (word < (groups - first) * 4)[None, :]
        seen = known & (token < tokens)[:, None]
        lower = tl.load(low + words + first * 4, mask=known, other=0).reshape(1, ROWS, GROUPS, 4)
        upper = lower
        if HIGH > 0:
            upper = tl.load(high + words + first * 4, mask=known, other=0).reshape(1, ROWS, GROUPS, 4)
        group = scaled + tl.minimum(first + scale % GROUPS, groups - 1)  # what is beyond the end is multiplied by 0
        for half in tl.static_range(HALVES):
            products = tl.zeros((TOKENS, ROWS, GROUPS, 4), tl.float32)
            summed = tl.zeros((TOKENS, 1, GROUPS, 1), tl.float32)
            for i in tl.static_range(8 // HALVES):
                at = given + first * 32 + 4 * (half * (8 // HALVES) + i)
                inputs = tl.load(at, mask=seen, other=0.0).to(tl.float32).reshape(TOKENS, 1, GROUPS, 4)
                codes = numbers(lower, upper, levels, half * (8 // HALVES) + i, LOW, HIGH, OFFSET, LEVELS)
                products = tl.fma(codes, inputs, products)
                summed += tl.sum(inputs, 3, keep_dims=True)
            factor = scale_of(scales, d, group, half, HALVES, PRODUCTS).reshape(1, ROWS, GROUPS, 1)
            total = tl.fma(factor, tl.sum(products, 3, keep_dims=True), total)
            if MINIMA:
                factor = scale_of(minima, dmin, group, half, HALVES, PRODUCTS).reshape(1, ROWS, GROUPS, 1)
                total = tl.fma(-factor, summed, total)
    write(tl.sum(tl.sum(total, 3), 2), out, tokens, rows, TOKENS, ROWS, GATED)
