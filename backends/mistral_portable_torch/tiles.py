"""Products of 5 to 64 tokens with packed weights, in Triton: tiles of weights are unpacked in registers, and multiplied by
all tokens on tensor cores.

Weights are rounded to the tokens' type, float16 or bfloat16, as `unpacking.py` rounds them; sums are float32. float32 has
no product on tensor cores that keeps its bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.codes import arguments, constants, numbers, scale_of
from mistral_portable_torch.planes import GROUP, Planes
from mistral_portable_torch.products import INTERPRETED, product

__all__ = ["DTYPES", "MAX_TOKENS", "multiply"]

MAX_TOKENS = 64
DTYPES = (torch.float16, torch.bfloat16)

_ROWS = 64
_GROUPS = 4
_PROGRAMS = 256  # two for each multiprocessor of an H100, of which it has 132


def multiply(x: Tensor, planes: Planes) -> Tensor:
    """x [T, I] of DTYPES, T <= 64, planes of a matrix [O, I] -> [T, O] in x's dtype.

    Rows are cut into parts of columns, until there are enough programs; the parts' sums are added up.
    """
    tokens, (rows, inputs) = len(x), planes.shape
    groups, tiles = inputs // GROUP, triton.cdiv(rows, _ROWS)
    splits = min(triton.cdiv(_PROGRAMS, tiles), triton.cdiv(groups, 4 * _GROUPS))
    sums = torch.empty(splits, tokens, rows, dtype=torch.float32, device=x.device)
    _tiles[(tiles, splits)](
        x.contiguous(), *arguments(planes), sums, tokens, rows, groups, **constants(planes),
        TOKENS=max(16, triton.next_power_of_2(tokens)), ROWS=_ROWS, GROUPS=_GROUPS, INTERPRETED=INTERPRETED,
        num_warps=4,
    )  # fmt: skip
    return sums.sum(0).to(x.dtype)


@triton.jit(do_not_specialize=["tokens"])
def _tiles(
    x, low, high, scales, minima, d, dmin, sums, tokens, rows, groups,
    LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, HALVES: tl.constexpr, MINIMA: tl.constexpr,
    PRODUCTS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    row, token, word = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TOKENS), tl.arange(0, 4 * GROUPS)
    start = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * groups
    share = tl.cdiv(tl.cdiv(groups, GROUPS), tl.num_programs(1)) * GROUPS
    begin = tl.program_id(1) * share
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for first in range(begin, tl.minimum(begin + share, groups), GROUPS):
        known = word < (groups - first) * 4
        column = first + word // 4
        at = (start + first) * 4 + word[None, :]
        lower = tl.load(low + at, mask=known[None, :], other=0)
        upper = tl.load(high + at, mask=known[None, :], other=0) if HIGH > 0 else lower
        group = start + tl.minimum(column, groups - 1)[None, :]
        given = x + token[None, :] * groups * 32 + (column * 32 + word % 4)[:, None]
        seen = known[:, None] & (token < tokens)[None, :]
        for half in tl.static_range(HALVES):
            scale = scale_of(scales, d, group, half, HALVES, PRODUCTS)
            if MINIMA:
                minimum = scale_of(minima, dmin, group, half, HALVES, PRODUCTS)
            for i in tl.static_range(8 // HALVES):
                weights = scale * numbers(lower, upper, half * (8 // HALVES) + i, LOW, HIGH, OFFSET)
                if MINIMA:
                    weights -= minimum
                inputs = tl.load(given + 4 * (half * (8 // HALVES) + i), mask=seen, other=0.0)
                total = product(weights.to(inputs.dtype), inputs, total, INTERPRETED)
    place = (tl.program_id(1) * tokens + token[None, :]).to(tl.int64) * rows + row[:, None]
    tl.store(sums + place, total, mask=(row < rows)[:, None] & (token < tokens)[None, :])
