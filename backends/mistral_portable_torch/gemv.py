"""Products of few tokens with ggml blocks, in Triton: packed weights are read once and unpacked in registers.

A product of one token is bound by the bandwidth of the weights. Each program takes 4 rows and goes along them, some
blocks at a time. The two nibbles of a byte belong to distant columns, so the activations are read in two parts.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["KINDS", "multiply"]

KINDS = ("q4_0", "q8_0", "q4_k", "q6_k")
"""ggml types that have a kernel: the most used ones of `--quantize`, and those in Q4_K_M files."""


def multiply(x: Tensor, blocks: Tensor, kind: str) -> Tensor:
    """x [T, I], blocks uint8 [O, bytes per row] of one of KINDS -> [T, O] in x's dtype, summed in float32."""
    kernel, columns, size, together = _KERNELS[kind]
    tokens, rows, inputs = len(x), len(blocks), x.shape[1]
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    per_program = 4
    grid = (triton.cdiv(rows, per_program), tokens)
    bytes_, halves = blocks, blocks.view(torch.float16)
    kernel[grid](x.contiguous(), bytes_, halves, out, rows, inputs, inputs // columns * size, inputs // columns,
                 ROWS=per_program, BLOCKS=together)  # fmt: skip
    return out


@triton.jit
def _q4_0(x, bytes_, halves, out, rows, inputs, row_bytes, row_blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """18 bytes: d, 16 bytes with columns 0 .. 15 in low nibbles and 16 .. 31 in high ones; weight d * (code - 8)."""
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    start = row.to(tl.int64)[:, None] * row_bytes
    j = tl.arange(0, 16)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for first in range(0, row_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        inside = (row[:, None] < rows) & (block[None, :] < row_blocks)
        begin = start + block[None, :] * 18
        d = tl.load(halves + begin // 2, mask=inside, other=0.0).to(tl.float32)
        codes = tl.load(bytes_ + begin[:, :, None] + 2 + j[None, None, :], mask=inside[:, :, None], other=0)
        at = token * inputs + block[:, None] * 32 + j[None, :]
        known = block[:, None] < row_blocks
        low = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
        high = tl.load(x + at + 16, mask=known, other=0.0).to(tl.float32)
        products = ((codes & 15).to(tl.float32) - 8) * low[None] + ((codes >> 4).to(tl.float32) - 8) * high[None]
        total += d * tl.sum(products, 2)
    tl.store(out + token * rows + row, tl.sum(total, 1).to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _q8_0(x, bytes_, halves, out, rows, inputs, row_bytes, row_blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """34 bytes: d, 32 int8 codes; weight d * code."""
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    start = row.to(tl.int64)[:, None] * row_bytes
    j = tl.arange(0, 32)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for first in range(0, row_blocks, BLOCKS):
        block = first + tl.arange(0, BLOCKS)
        inside = (row[:, None] < rows) & (block[None, :] < row_blocks)
        begin = start + block[None, :] * 34
        d = tl.load(halves + begin // 2, mask=inside, other=0.0).to(tl.float32)
        codes = tl.load(bytes_ + begin[:, :, None] + 2 + j[None, None, :], mask=inside[:, :, None], other=0)
        at = token * inputs + block[:, None] * 32 + j[None, :]
        numbers = tl.load(x + at, mask=block[:, None] < row_blocks, other=0.0).to(tl.float32)
        total += d * tl.sum(codes.to(tl.int8, bitcast=True).to(tl.float32) * numbers[None], 2)
    tl.store(out + token * rows + row, tl.sum(total, 1).to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _q4_k(x, bytes_, halves, out, rows, inputs, row_bytes, row_blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """144 bytes: d, dmin, 12 of scales and minima, 128 of codes; weight (d * scale) * code - dmin * minimum.

    A group is 32 columns. Groups 2 p and 2 p + 1 are the low and the high nibbles of 32 bytes. Groups 0 .. 3 have 6-bit
    scales in the first 4 bytes and 6-bit minima in the next 4. Groups 4 .. 7 have the low 4 bits of both in the last 4
    bytes, and the upper 2 in the top bits of the first 8.
    """
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    start = row.to(tl.int64)[:, None] * row_bytes
    j = tl.arange(0, 32)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for first in range(0, row_blocks * 4, BLOCKS):
        pair = first + tl.arange(0, BLOCKS)  # in the row
        block, p = pair // 4, pair % 4
        inside = (row[:, None] < rows) & (pair[None, :] < row_blocks * 4)
        begin = start + block[None, :] * 144
        d = tl.load(halves + begin // 2, mask=inside, other=0.0).to(tl.float32)
        dmin = tl.load(halves + begin // 2 + 1, mask=inside, other=0.0).to(tl.float32)
        place = begin + 4 + (2 * p[None, :]) % 4
        known = pair[:, None] < row_blocks * 4
        at = token * inputs + block[:, None] * 256 + p[:, None] * 64 + j[None, :]
        codes = tl.load(
            bytes_ + begin[:, :, None] + 16 + p[None, :, None] * 32 + j[None, None, :],
            mask=inside[:, :, None],
            other=0,
        )
        for upper in tl.static_range(2):
            a = tl.load(bytes_ + place + upper, mask=inside, other=0)
            b = tl.load(bytes_ + place + upper + 4, mask=inside, other=0)
            c = tl.load(bytes_ + place + upper + 8, mask=inside, other=0)
            early = p[None, :] < 2
            scale = tl.where(early, a & 63, (c & 15) | ((a >> 6) << 4)).to(tl.float32)
            minimum = tl.where(early, b & 63, (c >> 4) | ((b >> 6) << 4)).to(tl.float32)
            numbers = tl.load(x + at + 32 * upper, mask=known, other=0.0).to(tl.float32)
            half = (codes >> (4 * upper)) & 15
            total += d * scale * tl.sum(half.to(tl.float32) * numbers[None], 2)
            total -= dmin * minimum * tl.sum(numbers, 1)[None]
    tl.store(out + token * rows + row, tl.sum(total, 1).to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _q6_k(x, bytes_, halves, out, rows, inputs, row_bytes, row_blocks, ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """210 bytes: 128 of low 4 bits, 64 of upper 2 bits, 16 int8 scales, d; weight d * scale * (code - 32).

    A block has two parts of 128 columns, and a part four quarters of 32: the low nibbles of 32 bytes, those of the next
    32, then the high nibbles of both. A byte of upper bits has 2 bits for each quarter. A scale serves 16 columns.
    """
    row, token = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    start = row.to(tl.int64)[:, None] * row_bytes
    j = tl.arange(0, 32)
    total = tl.zeros((ROWS, BLOCKS), tl.float32)
    for first in range(0, row_blocks * 2, BLOCKS):
        part = first + tl.arange(0, BLOCKS)
        block, p = part // 2, part % 2
        inside = (row[:, None] < rows) & (part[None, :] < row_blocks * 2)
        begin = start + block[None, :] * 210
        d = tl.load(halves + begin // 2 + 104, mask=inside, other=0.0).to(tl.float32)
        known = part[:, None] < row_blocks * 2
        at = token * inputs + block[:, None] * 256 + p[:, None] * 128 + j[None, :]
        upper = tl.load(
            bytes_ + begin[:, :, None] + 128 + p[None, :, None] * 32 + j[None, None, :],
            mask=inside[:, :, None],
            other=0,
        )
        for quarter in tl.static_range(4):
            lower = tl.load(
                bytes_ + begin[:, :, None] + p[None, :, None] * 64 + (quarter % 2) * 32 + j[None, None, :],
                mask=inside[:, :, None],
                other=0,
            )
            scale = tl.load(
                bytes_ + begin[:, :, None] + 192 + p[None, :, None] * 8 + quarter * 2 + j[None, None, :] // 16,
                mask=inside[:, :, None],
                other=0,
            ).to(tl.int8, bitcast=True)
            code = ((lower >> (4 * (quarter // 2))) & 15) | (((upper >> (2 * quarter)) & 3) << 4)
            numbers = tl.load(x + at + 32 * quarter, mask=known, other=0.0).to(tl.float32)
            total += d * tl.sum((code.to(tl.float32) - 32) * scale.to(tl.float32) * numbers[None], 2)
    tl.store(out + token * rows + row, tl.sum(total, 1).to(out.dtype.element_ty), mask=row < rows)


_KERNELS: dict[str, tuple[Any, int, int, int]] = {
    "q4_0": (_q4_0, 32, 18, 32),
    "q8_0": (_q8_0, 32, 34, 32),
    "q4_k": (_q4_k, 256, 144, 16),
    "q6_k": (_q6_k, 256, 210, 16),
}
"""By type: kernel, columns per block, bytes per block, and blocks (or parts of them) that a program takes at a time."""
