"""Products of tiles with many tokens where an instruction multiplies two rows with two tokens, 8 columns at a time.

That is ARM's smmla (i8mm), which makes twice the products of sdot. Integers are exact, and floats are added in the
order of `FloatScales`, so the bits are those of one token.
"""

from typing import Any

from mistral_portable_numba.compiler.simd.load_store import load_bytes, prefetch, store_bytes
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.squares import (
    add_eight_columns,
    add_scaled_squares,
    eight_columns,
    fma_squares,
    load_squares,
    no_squares,
    scale_squares,
    start_squares,
    store_squares,
    store_twice,
)
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.layouts import START_ZEROS, activation_block, activation_sums, square_record

__all__ = ["Squares"]

GROUP = 4
"""Tokens of a group, which are multiplied at a time."""

_X_SUB, _X_SCALE, _X_BLOCK = 32 * GROUP, 128 * GROUP, activation_block(GROUP).itemsize


class Squares:
    """The functions of a format for many tokens, four of which are multiplied at a time, like those of `FloatScales`.

    take_apart(p, blocks, at): unpack blocks of one tile of a pair into its half of the scratch's records, one for 32
    columns (`layouts.square_record`). times: multiplies two unpacked tiles with a group of tokens.
    """

    def __init__(self, fmt: Format) -> None:
        layout, codes, scale, offset = fmt.layout, fmt.codes, fmt.scale, fmt.offset or fmt.scale
        has_offset, large, two_steps = layout.offset, layout.columns == 256, layout.step == 16
        steps, subs, record = 32 // layout.step, layout.columns // 32, square_record(layout)
        pair_bytes, offsets = 32 * layout.bytes, 1024 + 256 * steps
        due_sub = pair_bytes // (2 * subs)
        u_sub, u_sum = activation_sums(GROUP, layout.step, False).itemsize, 4 * steps * GROUP
        eighths = 0 if fmt.signed else 8 * fmt.zero // START_ZEROS[layout.step]

        @inlined
        def put(p: Any, s: Any, at: Any) -> None:
            for k in range(0, 8, 2):
                low, high = eight_columns(codes(p, s, k), codes(p, s, k + 1))
                store_bytes(at + 128 * k, low)
                store_bytes(at + 128 * k + 128, high)
            for h in range(steps):
                store_twice(at + 1024 + 256 * h, scale(p, s, h))
                if has_offset:
                    store_twice(at + offsets + 256 * h, offset(p, s, h))

        @inlined
        def take_apart(p: Any, blocks: Any, at: Any) -> None:
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
                p += pair_bytes
                at += subs * record

        @inlined
        def four_dwords(sums: Any, at: Any, x: Any) -> Any:
            sums = add_eight_columns(sums, load_bytes(at), load_bytes(at + 128), x)
            return add_eight_columns(sums, load_bytes(at + 256), load_bytes(at + 384), x + 8 * GROUP)

        @inlined
        def step(some: Any, at: Any, x: Any, u: Any, h: Any) -> Any:
            """Multiply the columns that share a scale."""
            sums = four_dwords(start_squares(u + 4 * GROUP * h, eighths), at + 512 * h, x + 16 * GROUP * h)
            if not two_steps:
                sums = four_dwords(sums, at + 512, x + 16 * GROUP)
            some = scale_squares(some, sums, at + 1024 + 256 * h)
            return fma_squares(some, at + offsets + 256 * h, u + u_sum + 4 * GROUP * h) if has_offset else some

        @inlined
        def tile(p: Any, blocks: Any, due: Any, x: Any, u: Any, out: Any, os: Any, add: Any) -> None:
            sums = load_squares(out, os) if add else no_squares()
            for first in range(0, blocks * subs, 4):
                some, at = no_squares(), x
                for _ in range(min(4, blocks * subs - first)):
                    for line in range(0, due_sub, 64):
                        prefetch(due + line)
                    some = step(some, p, at, u, 0)
                    if two_steps:
                        some = step(some, p, at, u, 1)
                    p += record
                    at += _X_SUB
                    u += u_sub
                    due += due_sub
                sums = add_scaled_squares(sums, some, x + _X_SCALE)
                x += _X_BLOCK
            store_squares(out, os, sums)

        @inlined
        def times(p: Any, q: Any, blocks: Any, due: Any, x: Any, u: Any, out: Any, os: Any, add: Any) -> None:
            tile(p, blocks, due, x, u, out, os, add)
            tile(q, blocks, due + blocks * subs * due_sub, x, u, out + 64, os, add)

        self.take_apart, self.times = take_apart, times
