"""Linear layers over quantized weights: codes of 2 to 8 bits times int8, one kernel per block format.

A lane is a row, so nothing is summed across lanes. A kernel multiplies two tiles of weights with a group of tokens at a
time (`Isa.tokens` at most). For few tokens, codes are unpacked as they are needed, for four at a time; for more, they
are unpacked once into scratch that stays in the CPU's cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.byte_dots import as_signed, signed_zero
from mistral_portable_numba.compiler.simd.get_put import get_i64
from mistral_portable_numba.compiler.simd.load_store import load_bytes, load_f32, prefetch, store_bytes, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.kernels.formats import FORMATS, Format
from mistral_portable_numba.kernels.registry import Factory
from mistral_portable_numba.layouts import (
    CHUNK,
    FEW,
    START_ZEROS,
    TOKEN_GROUP,
    activation_block,
    activation_sums,
    linear_record,
)

__all__ = ["KERNELS", "linear_kernel"]

_BLOCK = activation_block(1).itemsize
_AHEAD = 9216
"""Bytes between the address that is read and the one that is prefetched."""

_SHARE = 4
"""Pairs of tiles that a thread claims where there are many tokens."""


@dataclass(frozen=True)
class _Source:
    """The source of codes, scales and offsets: tiles, or scratch. The functions take (address of a block, s, k or h),
    like those of `Format`. bytes: distance between blocks. subs: groups of 32 columns in a block."""

    codes: Callable[..., Any]
    scale: Callable[..., Any]
    offset: Callable[..., Any]
    bytes: int
    subs: int


def linear_kernel(fmt: Format, most: int) -> Callable[..., Any]:
    """The kernel of out = x @ weight.T for a format; it takes 1, 4 or `most` tokens at a time.

    Arguments: counter, address of T, pairs of tiles, blocks per row, weights, out, bytes between its rows, x's blocks,
    their bytes per token, x's sums over the format's steps, their bytes per token, scratch, its bytes per thread.

    It reads and writes whole groups of tokens (see `layouts.token_group`).
    """
    layout, signed, tile_bytes = fmt.layout, fmt.signed, 16 * fmt.layout.bytes
    steps, columns, record = 32 // layout.step, layout.columns, linear_record(layout)
    subs = columns // 32
    sums_bytes = activation_sums(1, layout.step).itemsize
    in_step, chunk_blocks = 8 // steps, CHUNK // layout.columns
    eighths = 8 * fmt.zero // START_ZEROS[layout.step]
    assert TOKEN_GROUP % most == 0
    assert 8 * fmt.zero % START_ZEROS[layout.step] == 0
    assert layout.step == 32 or not signed  # a step of 16 would have another start

    @inlined
    def codes(p: Any, s: Any, k: Any) -> Any:
        return as_signed(fmt_codes(p, s, k)) if signed else fmt_codes(p, s, k)

    @inlined
    def put_codes(p: Any, s: Any, k: Any) -> Any:
        return load_bytes(p + 128 * k)

    @inlined
    def put_scale(p: Any, s: Any, h: Any) -> Any:
        return load_f32(p + 1024 + 128 * h)

    @inlined
    def put_offset(p: Any, s: Any, h: Any) -> Any:
        return load_f32(p + 1024 + 128 * (steps + h))

    fmt_codes, scale, offset = fmt.codes, fmt.scale, fmt.offset or fmt.scale
    has_offset, two_steps, large = layout.offset, steps == 2, subs == 8
    sub_bytes = 2 * tile_bytes // subs
    sub_lines = -(-sub_bytes // 64)
    packed = _Source(codes, scale, offset, 2 * tile_bytes, subs)
    taken_apart = _Source(put_codes, put_scale, put_offset, record, 1)

    def tiles_times(count: int, source: _Source) -> Any:
        """The function that multiplies two tiles with a group of `count` tokens, and may add the result to out."""
        # From tiles, products wait for memory, and for prefetches that stand in a row: 72 of them in a block of q4_k.
        # From scratch, or where codes need not be unpacked, pinning costs registers and gains nothing.
        each = Tokens(count, pinned=source is packed and layout.bytes < layout.columns)
        zeros, fma_one, add_scaled, scale_ints = each.zeros, each.fma_one, each.add_scaled, each.scale_ints
        load_each, store_each, start = each.load_each, each.store_each, each.start
        dot = each.dot_signed if signed else each.dot
        codes, scale, offset, size = source.codes, source.scale, source.offset, source.bytes
        x_sub, x_scale, x_block = 32 * count, 128 * count, _BLOCK * count
        u_sub, u_sum = sums_bytes * count, 4 * steps * count

        @inlined
        def fetch(due: Any, k: Any) -> None:
            """Prefetch an eighth of a sub-block's cache lines. Spread among the products, they do not wait for each
            other, nor the products for them."""
            for line in range(k, sub_lines, 8):
                prefetch(due + 64 * line)

        @inlined
        def four_dwords(ints: Any, p: Any, q: Any, s: Any, k: Any, x: Any, due: Any) -> Any:
            fetch(due, k)
            ints = dot(ints, codes(p, s, k), codes(q, s, k), x)
            fetch(due, k + 1)
            ints = dot(ints, codes(p, s, k + 1), codes(q, s, k + 1), x + 4 * count)
            fetch(due, k + 2)
            ints = dot(ints, codes(p, s, k + 2), codes(q, s, k + 2), x + 8 * count)
            fetch(due, k + 3)
            return dot(ints, codes(p, s, k + 3), codes(q, s, k + 3), x + 12 * count)

        @inlined
        def step(left: Any, right: Any, p: Any, q: Any, x: Any, u: Any, due: Any, s: Any, h: Any) -> Any:
            """Multiply the columns that share a scale."""
            ints = start(u, signed_zero() if signed else eighths)  # signed formats have steps of 32, whose zero is 8
            both = four_dwords((ints, ints), p, q, s, in_step * h, x, due)
            if not two_steps:
                both = four_dwords(both, p, q, s, 4, x + 16 * count, due)
            left, right = scale_ints(left, both[0], scale(p, s, h)), scale_ints(right, both[1], scale(q, s, h))
            if has_offset:
                left = fma_one(left, offset(p, s, h), u + u_sum, 4)
                right = fma_one(right, offset(q, s, h), u + u_sum, 4)
            return left, right

        @inlined
        def sub_block(left: Any, right: Any, p: Any, q: Any, x: Any, u: Any, due: Any, s: Any) -> Any:
            """Multiply 32 columns, with inputs at x and their sums at u. s is a constant, so LLVM folds the shifts."""
            left, right = step(left, right, p, q, x, u, due, s, 0)
            if two_steps:
                left, right = step(left, right, p, q, x + 16 * count, u + 4 * count, due, s, 1)
            return left, right

        @inlined
        def half(left: Any, right: Any, p: Any, q: Any, x: Any, u: Any, due: Any, s: Any) -> Any:
            """Multiply 128 columns of a block of 256, from sub-block s on."""
            some, more = sub_block(zeros(), zeros(), p, q, x, u, due, s)
            some, more = sub_block(some, more, p, q, x + x_sub, u + u_sub, due + sub_bytes, s + 1)
            some, more = sub_block(some, more, p, q, x + 2 * x_sub, u + 2 * u_sub, due + 2 * sub_bytes, s + 2)
            some, more = sub_block(some, more, p, q, x + 3 * x_sub, u + 3 * u_sub, due + 3 * sub_bytes, s + 3)
            return add_scaled(left, some, x + x_scale, 4), add_scaled(right, more, x + x_scale, 4)

        in_tiles = source.subs == 8

        @inlined
        def times(p: Any, q: Any, blocks: Any, due: Any, x: Any, u: Any, out: Any, os: Any, add: Any) -> None:
            left, right = zeros(), zeros()
            if add:
                left, right = load_each(out, os), load_each(out + 64, os)
            if in_tiles:
                for _ in range(blocks):
                    left, right = half(left, right, p, q, x, u, due, 0)
                    left, right = half(left, right, p, q, x + x_block, u + 4 * u_sub, due + 4 * sub_bytes, 4)
                    p += size
                    q += size
                    due += 8 * sub_bytes
                    x += 2 * x_block
                    u += 8 * u_sub
            else:
                for first in range(0, blocks, 4):
                    some, more = zeros(), zeros()
                    at = x
                    for _ in range(min(4, blocks - first)):
                        some, more = sub_block(some, more, p, q, at, u, due, 0)
                        p += size
                        q += size
                        due += sub_bytes
                        at += x_sub
                        u += u_sub
                    left, right = add_scaled(left, some, x + x_scale, 4), add_scaled(right, more, x + x_scale, 4)
                    x += x_block
            store_each(out, os, left)
            store_each(out + 64, os, right)

        return times

    @inlined
    def put(p: Any, s: Any, at: Any) -> None:
        for k in range(8):
            store_bytes(at + 128 * k, codes(p, s, k))
        for h in range(steps):
            store_f32(at + 1024 + 128 * h, scale(p, s, h))
            if has_offset:
                store_f32(at + 1024 + 128 * (steps + h), offset(p, s, h))

    @inlined
    def take_apart(p: Any, blocks: Any, at: Any) -> None:
        """Unpack one tile of a pair into its half of the scratch's records."""
        for _ in range(blocks):
            put(p, 0, at)
            if large:
                put(p, 1, at + record)
                put(p, 2, at + 2 * record)
                put(p, 3, at + 3 * record)
                put(p, 4, at + 4 * record)
                put(p, 5, at + 5 * record)
                put(p, 6, at + 6 * record)
                put(p, 7, at + 7 * record)
            p += 2 * tile_bytes
            at += subs * record

    # The most tokens for which codes are unpacked anew, every four. Where products of bytes take three instructions and
    # there are 16 registers, blocks of 256 columns are faster through the scratch.
    few = FEW if most > 4 else 1 if large else most
    one, many = tiles_times(1, packed), tiles_times(most, taken_apart)
    four = one if few == 1 else tiles_times(4, packed)  # not compiled in vain

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
                    many(scratch, q, some * subs, due, a, b, c, os, first > 0)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, pairs = get_i64(args), get_i64(get_i64(args + 8)), get_i64(args + 16)
        blocks, weights, out, os = get_i64(args + 24), get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        x, xs, u, us = get_i64(args + 56), get_i64(args + 64), get_i64(args + 72), get_i64(args + 80)
        scratch, row_bytes = get_i64(args + 88) + thread * get_i64(args + 96), blocks * tile_bytes
        # With many tokens, a chunk's inputs stay in the CPU's cache for a share of pairs; with few, weights stream.
        share = pairs // (8 * threads) if count <= few else min(_SHARE, pairs // (4 * threads))
        share = max(1, share)
        while count > 0:
            first = fetch_add(counter, share)
            if first >= pairs:
                break
            some = min(share, pairs - first)
            p, o = weights + 2 * row_bytes * first, out + 128 * first
            if count > few:
                several(p, some, blocks, count, x, xs, u, us, o, os, scratch)
                continue
            for _ in range(some):
                if count == 1:
                    one(p, p + tile_bytes, blocks, p + _AHEAD, x, u, o, os, False)
                else:
                    for t in range(0, count, 4):
                        four(p, p + tile_bytes, blocks, p + _AHEAD, x + t * xs, u + t * us, o + t * os, os, False)
                p += 2 * row_bytes
                o += 128

    return kernel


KERNELS: dict[str, Factory] = {f"linear_{name}": partial(linear_kernel, fmt) for name, fmt in FORMATS.items()}
