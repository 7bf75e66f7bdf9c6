"""Packed weights unpacked by one Triton kernel: for Q4_0 in bfloat16 2.6 bytes a weight are moved, where the operations
of `planes.py`, which go through float32 in memory, move some 25."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mistral_portable_torch.codes import arguments, constants, weights_of
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
    low, high, scales, minima, d, dmin, levels, out, count,
    LOW: tl.constexpr, HIGH: tl.constexpr, OFFSET: tl.constexpr, LEVELS: tl.constexpr, HALVES: tl.constexpr,
    MINIMA: tl.constexpr, PRODUCTS: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    inside, group = (group < count)[:, None], tl.minimum(group, count - 1)
    weights = weights_of(
        low, high, scales, minima, d, dmin, levels, group, TOGETHER, LOW, HIGH, OFFSET, LEVELS, HALVES, MINIMA, PRODUCTS
    )
    at = out + group[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(at, weights.to(out.dtype.element_ty), mask=inside)
