"""Packed weights unpacked by one Triton kernel: for Q4_0 in bfloat16 2.6 bytes a weight are moved, where the operations
of `planes.py`, which go through float32 in memory, move some 25."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.codes import arguments, constants, numbers, scale_of
from mistral_portable_torch.planes import GROUP, Planes

__all__ = ["unpack"]

_TOGETHER = 128


def unpack(planes: Planes, dtype: torch.dtype) -> Tensor:
    """Planes of a matrix -> its weights [O, I] in `dtype`, computed in float32, rounded once."""
    rows, inputs = planes.shape
    out = torch.empty(rows, inputs, dtype=dtype, device=planes.scales.device)
    count = rows * (inputs // GROUP)
    _unpack[(triton.cdiv(count, _TOGETHER),)](
        *arguments(planes), out, count, **constants(planes), TOGETHER=_TOGETHER, num_warps=4
    )
    return out


@triton.jit
def _unpack(
    low, high, scales, minima, d, dmin, out, count,
    LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, HALVES: tl.constexpr, MINIMA: tl.constexpr,
    PRODUCTS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    inside, group = (group < count)[:, None], tl.minimum(group, count - 1)
    word = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    lower = tl.load(low + word)
    upper = tl.load(high + word) if HIGH > 0 else lower
    dtype = out.dtype.element_ty
    first = _half(lower, upper, scales, minima, d, dmin, group, dtype, 0, LOW, HIGH, OFFSET, HALVES, MINIMA, PRODUCTS)
    second = _half(lower, upper, scales, minima, d, dmin, group, dtype, 1, LOW, HIGH, OFFSET, HALVES, MINIMA, PRODUCTS)
    # [groups, 4 words, 2, 2, 2 bits of the place from the lowest on] -> [groups, 32 columns]
    weights = tl.join(first, second).permute(0, 4, 3, 2, 1).reshape(TOGETHER, 32)
    tl.store(out + group[:, None] * 32 + tl.arange(0, 32)[None, :], weights, mask=inside)


@triton.jit
def _half(
    lower, upper, scales, minima, d, dmin, group, dtype: tl.constexpr,
    HALF: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, HALVES: tl.constexpr,
    MINIMA: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Weights of 16 columns: [groups, 4 words, 2, 2 bits of the place]."""
    which: tl.constexpr = HALF * (HALVES - 1)
    scale = scale_of(scales, d, group, which, HALVES, PRODUCTS)[:, None]
    a = scale * numbers(lower, upper, 4 * HALF, LOW, HIGH, OFFSET)
    b = scale * numbers(lower, upper, 4 * HALF + 1, LOW, HIGH, OFFSET)
    c = scale * numbers(lower, upper, 4 * HALF + 2, LOW, HIGH, OFFSET)
    e = scale * numbers(lower, upper, 4 * HALF + 3, LOW, HIGH, OFFSET)
    weights = tl.join(tl.join(a, b), tl.join(c, e))
    if MINIMA:
        weights -= scale_of(minima, dmin, group, which, HALVES, PRODUCTS)[:, None, None, None]
    return weights.to(dtype)
