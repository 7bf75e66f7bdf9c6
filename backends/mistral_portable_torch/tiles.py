"""Products of 5 to 64 tokens with packed weights, in Triton: tiles of weights are unpacked and multiplied by all tokens
on tensor cores.

Weights are rounded to the tokens' type, float16 or bfloat16, as `unpacking.py` rounds them; sums are float32. There are
no products of float32 on tensor cores that keep all bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.codes import arguments, constants, weights_of
from mistral_portable_torch.occupancy import PROGRAMS
from mistral_portable_torch.planes import GROUP, Planes
from mistral_portable_torch.products import INTERPRETED, product

__all__ = ["DTYPES", "MAX_TOKENS", "multiply"]

MAX_TOKENS = 64
DTYPES = (torch.float16, torch.bfloat16)

_ROWS = 64
_GROUPS = 4


def multiply(x: Tensor, planes: Planes) -> Tensor:
    """x [T, I] of DTYPES, T <= 64, planes of a matrix [O, I] -> [T, O] in x's dtype.

    Rows are cut into parts of columns, until there are enough programs; the parts' sums are added up.
    """
    tokens, (rows, inputs) = len(x), planes.shape
    groups, tiles = inputs // GROUP, triton.cdiv(rows, _ROWS)
    splits = min(triton.cdiv(PROGRAMS, tiles), triton.cdiv(groups, 4 * _GROUPS))
    sums = x.new_empty(splits, tokens, rows, dtype=torch.float32 if splits > 1 else x.dtype)
    _tiles[(tiles, splits)](
        x.contiguous(), *arguments(planes), sums, tokens, rows, groups, **constants(planes),
        TOKENS=max(16, triton.next_power_of_2(tokens)), ROWS=_ROWS, GROUPS=_GROUPS, INTERPRETED=INTERPRETED,
        num_warps=4,
    )  # fmt: skip
    return sums.sum(0).to(x.dtype) if splits > 1 else sums[0]


@triton.jit(do_not_specialize=["tokens"])
def _tiles(
    x, low, high, scales, minima, d, dmin, levels, sums, tokens, rows, groups,
    LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, LEVELS: tl.constexpr, HALVES: tl.constexpr,
    MINIMA: tl.constexpr, PRODUCTS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TOKENS)
    start = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * groups
    share = tl.cdiv(tl.cdiv(groups, GROUPS), tl.num_programs(1)) * GROUPS
    begin = tl.program_id(1) * share
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for first in range(begin, tl.minimum(begin + share, groups), GROUPS):
        column = first * 32 + tl.arange(0, GROUPS * 32)
        at = x + token[None, :] * groups * 32 + column[:, None]
        inputs = tl.load(at, mask=(column < groups * 32)[:, None] & (token < tokens)[None, :], other=0.0)
        # What is beyond the end is multiplied by 0.
        group = start + tl.minimum(first + tl.arange(0, GROUPS), groups - 1)[None, :]
        weights = weights_of(
            low, high, scales, minima, d, dmin, levels, group.reshape(ROWS * GROUPS),
            ROWS * GROUPS, LOW, HIGH, OFFSET, LEVELS, HALVES, MINIMA, PRODUCTS,
        )  # fmt: skip
        total = product(weights.to(inputs.dtype).reshape(ROWS, GROUPS * 32), inputs, total, INTERPRETED)
    place = (tl.program_id(1) * tokens + token[None, :]).to(tl.int64) * rows + row[:, None]
    tl.store(sums + place, total.to(sums.dtype.element_ty), mask=(row < rows)[:, None] & (token < tokens)[None, :])
