"""Products of which SwiGLU is made in the same Triton kernel: a matrix has the rows of gate, then as many of up."""

import triton
import triton.language as tl

__all__ = ["rows_of", "write"]


@triton.jit
def rows_of(place, rows, ROWS: tl.constexpr, GATED: tl.constexpr):
    """The rows at places 0 .. ROWS - 1 of this program: side by side, or half of them gate's and half of them up's.

    Example: 12 rows, 4 of a program, gated: program 1 has the rows 2, 3, 8, 9.
    """
    if GATED:
        half: tl.constexpr = ROWS // 2
        return tl.program_id(0) * half + place % half + place // half * (rows // 2)
    return tl.program_id(0) * ROWS + place


@triton.jit
def write(products, out, tokens, rows, TOKENS: tl.constexpr, ROWS: tl.constexpr, GATED: tl.constexpr):
    """Write products float32 [TOKENS, ROWS] of `rows_of` to out [tokens, rows], or SwiGLU of them to out
    [tokens, rows / 2].

    Products are rounded first, as those that are written are.
    """
    count: tl.constexpr = ROWS // 2 if GATED else ROWS
    token = tl.arange(0, TOKENS)
    row = tl.program_id(0) * count + tl.arange(0, count)
    if GATED:
        rounded = products.to(out.dtype.element_ty).to(tl.float32)
        gate, up = tl.split(rounded.reshape(TOKENS, 2, count).permute(0, 2, 1))
        products = gate / (1 + tl.exp(-gate)) * up
        rows = rows // 2
    place = token[:, None].to(tl.int64) * rows + row[None, :]
    inside = (token < tokens)[:, None] & (row < rows)[None, :]
    tl.store(out + place, products.to(out.dtype.element_ty), mask=inside)
