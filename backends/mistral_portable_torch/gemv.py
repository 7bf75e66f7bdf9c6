"""Products of 1 to 4 tokens with packed weights, in Triton: weights are read once for all tokens.

A product of one token is bound by the bandwidth of the weights. A program takes some rows and goes along them; a thread
has groups of 32 columns, adds up their products, and multiplies each sum by the group's scale. Sums are float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.codes import arguments, constants, numbers, scale_of
from mistral_portable_torch.planes import GROUP, Planes

__all__ = ["MAX_TOKENS", "multiply"]

MAX_TOKENS = 4
"""Each token more takes as many multiplications as the first, which then bound the kernel in place of the memory."""

_ROWS = 4
_GROUPS = 128


def multiply(x: Tensor, planes: Planes) -> Tensor:
    """x [T, I], T <= 4, planes of a matrix [O, I] -> [T, O] in x's dtype, summed in float32."""
    tokens, (rows, inputs) = len(x), planes.shape
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    _gemv[(triton.cdiv(rows, _ROWS),)](
        x.contiguous(), *arguments(planes), out, tokens, rows, inputs // GROUP, **constants(planes),
        TOKENS=triton.next_power_of_2(tokens), ROWS=_ROWS, GROUPS=_GROUPS, num_warps=4,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens"])
def _gemv(
    x, low, high, scales, minima, d, dmin, out, tokens, rows, groups,
    LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, HALVES: tl.constexpr, MINIMA: tl.constexpr,
    PRODUCTS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TOKENS)
    # All tiles are [tokens, rows, groups, words], so that a thread has the same groups in each.
    k = tl.arange(0, 4)[None, None, None, :]
    start = tl.minimum(row, rows - 1).to(tl.int64)[None, :, None, None] * groups
    given = x + token[:, None, None, None] * groups * 32
    total = tl.zeros((TOKENS, ROWS, GROUPS, 1), tl.float32)
    for first in range(0, groups, GROUPS):
        column = first + tl.arange(0, GROUPS)[None, None, :, None]
        known = (token < tokens)[:, None, None, None] & (column < groups)
        group = start + tl.minimum(column, groups - 1)  # what is beyond the end is multiplied by 0
        lower = tl.load(low + group * 4 + k)
        upper = tl.load(high + group * 4 + k) if HIGH > 0 else lower
        for half in tl.static_range(HALVES):
            products = tl.zeros((TOKENS, ROWS, GROUPS, 4), tl.float32)
            summed = tl.zeros((TOKENS, 1, GROUPS, 4), tl.float32)
            for i in tl.static_range(8 // HALVES):
                at = given + column * 32 + 4 * (half * (8 // HALVES) + i) + k
                inputs = tl.load(at, mask=known, other=0.0).to(tl.float32)
                codes = numbers(lower, upper, half * (8 // HALVES) + i, LOW, HIGH, OFFSET)
                products = tl.fma(codes, inputs, products)
                summed += inputs
            scale = scale_of(scales, d, group, half, HALVES, PRODUCTS)
            total = tl.fma(scale, tl.sum(products, 3, keep_dims=True), total)
            if MINIMA:
                minimum = scale_of(minima, dmin, group, half, HALVES, PRODUCTS)
                total = tl.fma(-minimum, tl.sum(summed, 3, keep_dims=True), total)
    total = tl.sum(tl.sum(total, 3), 2)
    place = token[:, None].to(tl.int64) * rows + row[None, :]
    inside = (token < tokens)[:, None] & (row < rows)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
