"""Linear layers over quantized weights: codes of 2 to 8 bits times int8, one kernel per block format.

A lane is a row, so nothing is summed across lanes. A kernel multiplies two tiles of weights with a group of tokens at a
time (`Isa.at_once` at most). For few tokens codes are unpacked as they are needed, for two or four at a time; for more
they are unpacked once into scratch that stays in the CPU's cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_i64
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.kernels.float_scales import FloatScales
from mistral_portable_numba.kernels.formats import FORMATS, Format
from mistral_portable_numba.kernels.integer_scales import IntegerScales
from mistral_portable_numba.kernels.registry import Factory
from mistral_portable_numba.kernels.squares import Squares
from mistral_portable_numba.kernels.tiled_blocks import tiled_products
from mistral_portable_numba.layouts import (
    CHUNK,
    FEW,
    FEW_TILED,
    SHARE,
    TOKEN_GROUP,
    activation_block,
    activation_sums,
)

__all__ = ["KERNELS", "Products", "linear_kernel", "products_of"]

_BLOCK = activation_block(1).itemsize
_AHEAD = 4096
"""Bytes from the next block to what is prefetched; the vectors of a block are read in any order."""


@dataclass(frozen=True)
class Products:
    """The functions that a format's linear kernel is made of (see `FloatScales`).

    one: for one token. some: for `together` tokens of four, with codes unpacked anew each time, if there are up to
    `few` tokens. many: for `Isa.at_once` tokens of a group, from scratch, which take_apart fills.
    """

    one: Callable[..., Any]
    some: Callable[..., Any]
    many: Callable[..., Any]
    take_apart: Callable[..., Any]
    few: int
    together: int


def products_of(fmt: Format, isa: Isa) -> Products:
    """The functions of a format's products on an instruction set."""
    layout, most = fmt.layout, isa.tokens
    large = layout.columns == 256
    integers = large and (isa.words or isa.tiles)
    arithmetic = (IntegerScales if integers else FloatScales)(fmt, isa.words)
    # From tiles, products wait for memory, and for prefetches that stand in a row: 72 of them in a block of q4_k.
    # Where codes need not be unpacked, pinning costs registers and gains nothing.
    pinned = layout.bytes < layout.columns
    # The most tokens for which codes are unpacked anew, and how many at a time: until scratch is faster.
    few, together = (FEW, 4) if most > 4 else (2 if large or isa.words else 4, 2)
    few = FEW_TILED if isa.tiles else few
    one = arithmetic.times(1, 1, from_tiles=True, pinned=pinned)
    some = arithmetic.times(together, 4, from_tiles=True, pinned=pinned)
    if isa.squares:
        squares = Squares(fmt)
        many, take_apart = squares.times, squares.take_apart
    else:  # where it is not called, it is not compiled in vain
        many = one if isa.tiles else arithmetic.times(isa.at_once, most, from_tiles=False, pinned=isa.words)
        take_apart = arithmetic.take_apart
    return Products(one, some, many, take_apart, few, together)


def linear_kernel(fmt: Format, isa: Isa) -> Callable[..., Any]:
    """The kernel of out = x @ weight.T for a format; it takes `layouts.token_group` tokens at a time.

    Arguments: counter, address of T, pairs of tiles, blocks per row, weights, out, bytes between its rows, x's blocks,
    their bytes per token, x's sums over the format's steps, their bytes per token, scratch, its bytes per thread.

    It reads and writes whole groups of tokens; with AMX it writes those that there are (see `layouts.token_group`).
    """
    layout, tile_bytes, most = fmt.layout, 16 * fmt.layout.bytes, isa.tokens
    columns, sums_bytes = layout.columns, activation_sums(1, layout.step, isa.words).itemsize
    chunk_blocks, ahead = CHUNK // columns, 2 * tile_bytes + _AHEAD
    assert TOKEN_GROUP % most == 0
    made = products_of(fmt, isa)
    one, some_of_four, many, take_apart = made.one, made.some, made.many, made.take_apart
    few, together, at_once = made.few, made.together, isa.at_once

    @inlined
    def several(
        p: Any, pairs: Any, blocks: Any, count: Any, x: Any, xs: Any, u: Any, us: Any, out: Any, os: Any, scratch: Any
    ) -> None:
        """Multiply some pairs of tiles with all tokens, chunk after chunk of the columns."""
        row_bytes, q = blocks * tile_bytes, scratch + 64
        for first in range(0, blocks, chunk_blocks):
            some, column = min(chunk_blocks, blocks - first), first * columns
            x_first, u_first = x + column // 128 * _BLOCK * most, u + column // 32 * sums_bytes * most
            for pair in range(pairs):
                at, o = p + 2 * (row_bytes * pair + tile_bytes * first), out + 128 * pair
                due = at + 2 * row_bytes if pair + 1 < pairs else p + 2 * tile_bytes * (first + some)
                for side in range(2):
                    take_apart(at + side * tile_bytes, some, scratch + 64 * side)
                for t in range(0, count, most):
                    a, b, c = x_first + t * xs, u_first + t * us, o + t * os
                    for j in range(0, most, at_once):
                        many(scratch, q, some, due, a + 4 * j, b + 4 * j, c + os * j, os, first > 0)

    products = tiled_products(fmt) if isa.tiles else several

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, pairs = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        blocks, weights, out, os = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        x, xs, u, us = get_i64(args + 56), get_i64(args + 64), get_i64(args + 72), get_i64(args + 80)
        scratch, row_bytes = get_i64(args + 88) + thread * get_i64(args + 96), blocks * tile_bytes
        # With many tokens, a chunk's inputs stay in the CPU's cache for a share of pairs; with few, weights stream.
        share = max(1, pairs // (8 * threads) if count <= few else min(SHARE, pairs // (4 * threads)))
        while count > 0:
            first = fetch_add(counter, share)
            if first >= pairs:
                break
            some = min(share, pairs - first)
            p, o = weights + 2 * row_bytes * first, out + 128 * first
            if count > few:
                products(p, some, blocks, count, x, xs, u, us, o, os, scratch)
                continue
            for _ in range(some):
                if count == 1:
                    one(p, p + tile_bytes, blocks, p + ahead, x, u, o, os, False)
                else:
                    for t in range(0, count, 4):
                        for j in range(0, min(4, count - t), together):
                            at, b, c = x + t * xs + 4 * j, u + t * us + 4 * j, o + (t + j) * os
                            some_of_four(p, p + tile_bytes, blocks, p + ahead, at, b, c, os, False)
                p += 2 * row_bytes
                o += 128

    return kernel


KERNELS: dict[str, Factory] = {f"linear_{name}": partial(linear_kernel, fmt) for name, fmt in FORMATS.items()}
