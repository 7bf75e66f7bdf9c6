"""Products of tiles with tokens where each step of columns is multiplied with its scale as a float32.

A lane is a row, so nothing is summed across lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mistral_portable_numba.compiler.simd.byte_dots import as_signed, signed_zero
from mistral_portable_numba.compiler.simd.lanes import all_i32
from mistral_portable_numba.compiler.simd.load_store import load_bytes, load_f32, store_bytes, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.kernels.dwords import two_dwords
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.layouts import START_ZEROS, activation_block, activation_sums, linear_record

__all__ = ["FloatScales"]

_BLOCK = activation_block(1).itemsize


@dataclass(frozen=True)
class _Source:
    """The source of codes, scales and offsets: tiles, or scratch. The functions take (address of a block, s, k or h),
    like those of `Format`. bytes: distance between blocks. subs: groups of 32 columns in a block."""

    codes: Callable[..., Any]
    scale: Callable[..., Any]
    offset: Callable[..., Any]
    bytes: int
    subs: int


class FloatScales:
    """The arithmetic of a format's linear kernel: `take_apart` and the functions that `times` makes.

    take_apart(p, blocks, at): unpack blocks of one tile of a pair into its half of the scratch's records, one for 32
    columns.
    """

    def __init__(self, fmt: Format, words: bool) -> None:
        """words: `Isa.words`; then products are added in 16 bits, as many as fit (`Format.dwords`)."""
        layout, self._words, self._format = fmt.layout, words, fmt
        self._steps, self._record = 32 // layout.step, linear_record(layout)
        steps, subs, record = self._steps, layout.columns // 32, self._record
        signed, fmt_codes, scale, offset = fmt.signed, fmt.codes, fmt.scale, fmt.offset or fmt.scale
        has_offset, large, pair_bytes = layout.offset, subs == 8, 32 * layout.bytes

        @inlined
        def codes(p: Any, s: Any, k: Any) -> Any:
            return as_signed(fmt_codes(p, s, k)) if signed else fmt_codes(p, s, k)

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
        def put_codes(p: Any, s: Any, k: Any) -> Any:
            return load_bytes(p + 128 * k)

        @inlined
        def put_scale(p: Any, s: Any, h: Any) -> Any:
            return load_f32(p + 1024 + 128 * h)

        @inlined
        def put_offset(p: Any, s: Any, h: Any) -> Any:
            return load_f32(p + 1024 + 128 * (steps + h))

        self.take_apart = take_apart
        self._tiles = _Source(codes, scale, offset, pair_bytes, subs)
        self._scratch = _Source(put_codes, put_scale, put_offset, record, 1)

    def times(self, count: int, group: int, *, from_tiles: bool, pinned: bool) -> Any:
        """The function that multiplies two tiles with `count` tokens of a group, and may add the result to out.

        Its arguments: addresses of the two tiles, or of scratch; their blocks; an address to prefetch from; addresses
        of activations, of their sums and of out; bytes between out's rows; whether to add. pinned: see `Tokens`.
        """
        fmt, layout, steps = self._format, self._format.layout, self._steps
        source = self._tiles if from_tiles else self._scratch
        codes, scale, offset, size = source.codes, source.scale, source.offset, source.bytes
        each = Tokens(count, pinned=pinned)
        zeros, fma_one, add_scaled, scale_ints = each.zeros, each.fma_one, each.add_scaled, each.scale_ints
        load_each, store_each, start, no_ints = each.load_each, each.store_each, each.start, each.no_ints
        add_words = each.add_words
        signed, has_offset, two_steps, in_tiles = fmt.signed, layout.offset, steps == 2, source.subs == 8
        sums_bytes, sub_bytes = (
            activation_sums(1, layout.step, self._words).itemsize,
            512 * layout.bytes // layout.columns * 2,
        )
        x_sub, x_scale, x_block = 32 * group, 128 * group, _BLOCK * group
        u_sub, u_sum = sums_bytes * group, 4 * steps * group
        per_scratch = layout.columns // 32
        eighths = 8 * fmt.zero // START_ZEROS[layout.step]
        assert 8 * fmt.zero % START_ZEROS[layout.step] == 0
        assert layout.step == 32 or not signed  # a step of 16 would have another start
        words, zero, dwords = self._words and not signed, fmt.zero, fmt.dwords
        start_words = each.words({16: 1, 8: 0, 1: -3}.get(eighths, 0))  # the start's words times eighths / 8
        two = two_dwords(codes, each.add_pairs if words else each.dot_signed if signed else each.dot, group, sub_bytes)

        @inlined
        def begin(u: Any) -> Any:
            return start_words(u) if zero else no_ints()

        @inlined
        def end(ints: Any, part: Any) -> Any:
            return add_words(ints, part, all_i32(0x10001), all_i32(0x10001))

        @inlined
        def four_dwords(ints: Any, p: Any, q: Any, s: Any, k: Any, x: Any, due: Any) -> Any:
            return two(two(ints, p, q, s, k, x, due), p, q, s, k + 2, x, due)

        @inlined
        def products(p: Any, q: Any, x: Any, u: Any, due: Any, s: Any, h: Any) -> Any:
            """The sums of the integer products of a step."""
            if words:
                part = four_dwords(begin(u), p, q, s, 4 * h, x, due)
                if two_steps:
                    return end(no_ints(), part)
                if dwords == 8:
                    return end(no_ints(), four_dwords(part, p, q, s, 4, x, due))
                ints = end(no_ints(), part)
                return end(ints, four_dwords(no_ints(), p, q, s, 4, x, due))
            one = start(u, signed_zero() if signed else eighths)  # signed formats have steps of 32, whose zero is 8
            both = four_dwords((one, one), p, q, s, 4 * h, x, due)
            return both if two_steps else four_dwords(both, p, q, s, 4, x, due)

        @inlined
        def step(left: Any, right: Any, p: Any, q: Any, x: Any, u: Any, due: Any, s: Any, h: Any) -> Any:
            """Multiply the columns that share a scale."""
            both = products(p, q, x, u, due, s, h)
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
                left, right = step(left, right, p, q, x, u + 4 * group, due, s, 1)
            return left, right

        @inlined
        def half(left: Any, right: Any, p: Any, q: Any, x: Any, u: Any, due: Any, s: Any) -> Any:
            """Multiply 128 columns of a block of 256, from sub-block s on."""
            some, more = sub_block(zeros(), zeros(), p, q, x, u, due, s)
            some, more = sub_block(some, more, p, q, x + x_sub, u + u_sub, due + sub_bytes, s + 1)
            some, more = sub_block(some, more, p, q, x + 2 * x_sub, u + 2 * u_sub, due + 2 * sub_bytes, s + 2)
            some, more = sub_block(some, more, p, q, x + 3 * x_sub, u + 3 * u_sub, due + 3 * sub_bytes, s + 3)
            return add_scaled(left, some, x + x_scale, 4), add_scaled(right, more, x + x_scale, 4)

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
                subs = blocks * per_scratch
                for first in range(0, subs, 4):
                    some, more = zeros(), zeros()
                    at = x
                    for _ in range(min(4, subs - first)):
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
