"""ggml blocks unpacked by one Triton kernel a type: for Q4_0 in bfloat16 2.6 bytes a weight are moved, where the
operations of `ggml.py`, which go through float32 in memory, move some 25.

Layouts: see `gemv.py`. A program takes some blocks, or parts of them.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["KINDS", "unpack"]

KINDS = ("q4_0", "q8_0", "q4_k", "q6_k")
"""ggml types that have a kernel: those of `gemv.KINDS`."""


def unpack(blocks: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Contiguous uint8 [O, bytes per row] of one of KINDS -> [O, I] in `dtype`, computed in float32, rounded once."""
    kernel, columns, size, parts, together = _KERNELS[kind]
    out = torch.empty(len(blocks), blocks.shape[1] // size * columns, dtype=dtype, device=blocks.device)
    count = blocks.numel() // size * parts
    kernel[(triton.cdiv(count, together),)](blocks, blocks.view(torch.float16), out, count, TOGETHER=together)
    return out


@triton.jit
def _q4_0(bytes_, halves, out, count, TOGETHER: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    j, inside = tl.arange(0, 16), block < count
    d = tl.load(halves + block * 9, mask=inside, other=0.0).to(tl.float32)[:, None]
    codes = tl.load(bytes_ + block[:, None] * 18 + 2 + j[None, :], mask=inside[:, None], other=0)
    at = out + block[:, None] * 32 + j[None, :]
    tl.store(at, (d * ((codes & 15).to(tl.float32) - 8)).to(out.dtype.element_ty), mask=inside[:, None])
    tl.store(at + 16, (d * ((codes >> 4).to(tl.float32) - 8)).to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _q8_0(bytes_, halves, out, count, TOGETHER: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    j, inside = tl.arange(0, 32), block < count
    d = tl.load(halves + block * 17, mask=inside, other=0.0).to(tl.float32)[:, None]
    codes = tl.load(bytes_ + block[:, None] * 34 + 2 + j[None, :], mask=inside[:, None], other=0)
    weights = d * codes.to(tl.int8, bitcast=True).to(tl.float32)
    tl.store(out + block[:, None] * 32 + j[None, :], weights.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _q4_k(bytes_, halves, out, count, TOGETHER: tl.constexpr):
    """A part is a pair of groups: the low and the high nibbles of 32 bytes."""
    part = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    j, inside, block, p = tl.arange(0, 32), part < count, part // 4, part % 4
    begin = block * 144
    d = tl.load(halves + block * 72, mask=inside, other=0.0).to(tl.float32)
    dmin = tl.load(halves + block * 72 + 1, mask=inside, other=0.0).to(tl.float32)
    codes = tl.load(bytes_ + begin[:, None] + 16 + p[:, None] * 32 + j[None, :], mask=inside[:, None], other=0)
    place = begin + 4 + (2 * p) % 4
    for upper in tl.static_range(2):
        a = tl.load(bytes_ + place + upper, mask=inside, other=0)
        b = tl.load(bytes_ + place + upper + 4, mask=inside, other=0)
        c = tl.load(bytes_ + place + upper + 8, mask=inside, other=0)
        scale = d * tl.where(p < 2, a & 63, (c & 15) | ((a >> 6) << 4)).to(tl.float32)
        minimum = dmin * tl.where(p < 2, b & 63, (c >> 4) | ((b >> 6) << 4)).to(tl.float32)
        weights = scale[:, None] * ((codes >> (4 * upper)) & 15).to(tl.float32) - minimum[:, None]
        at = out + block[:, None] * 256 + p[:, None] * 64 + 32 * upper + j[None, :]
        tl.store(at, weights.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _q6_k(bytes_, halves, out, count, TOGETHER: tl.constexpr):
    """A part is half a block, 128 columns in four quarters."""
    part = tl.program_id(0).to(tl.int64) * TOGETHER + tl.arange(0, TOGETHER)
    j, inside, block, p = tl.arange(0, 32), part < count, part // 2, part % 2
    begin, known = block[:, None] * 210, (part < count)[:, None]
    d = tl.load(halves + block * 105 + 104, mask=inside, other=0.0).to(tl.float32)
    upper = tl.load(bytes_ + begin + 128 + p[:, None] * 32 + j[None, :], mask=known, other=0)
    for quarter in tl.static_range(4):
        at = begin + p[:, None] * 64 + (quarter % 2) * 32 + j[None, :]
        lower = tl.load(bytes_ + at, mask=known, other=0)
        at = begin + 192 + p[:, None] * 8 + quarter * 2 + j[None, :] // 16
        scale = tl.load(bytes_ + at, mask=known, other=0).to(tl.int8, bitcast=True).to(tl.float32)
        code = ((lower >> (4 * (quarter // 2))) & 15) | (((upper >> (2 * quarter)) & 3) << 4)
        weights = d[:, None] * scale * (code.to(tl.float32) - 32)
        target = out + block[:, None] * 256 + p[:, None] * 128 + 32 * quarter + j[None, :]
        tl.store(target, weights.to(out.dtype.element_ty), mask=known)


_KERNELS: dict[str, tuple[Any, int, int, int, int]] = {
    "q4_0": (_q4_0, 32, 18, 1, 64),
    "q8_0": (_q8_0, 32, 34, 1, 64),
    "q4_k": (_q4_k, 256, 144, 4, 16),
    "q6_k": (_q6_k, 256, 210, 2, 16),
}
"""By type: kernel, columns and bytes per block, parts of a block, and parts that a program takes."""
