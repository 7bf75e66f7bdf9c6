"""Products of tiles with tokens for blocks of 256 columns, where sums are multiplied with the integers of the scales.

For 128 columns, which share the scale of the activations, all is exact: sums of products in 16 or 32 bits, times the
integers of scales and offsets in 32. Then sum * d - minima * dmin is multiplied with the activations' scale.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mistral_portable_numba.compiler.simd.byte_dots import as_signed, signed_zero
from mistral_portable_numba.compiler.simd.load_store import (
    load_bytes,
    load_f32,
    load_i32,
    store_bytes,
    store_f32,
    store_i32,
)
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tokens import Tokens
from mistral_portable_numba.compiler.simd.words import low_word
from mistral_portable_numba.kernels.dwords import two_dwords
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.layouts import START_ZEROS, activation_block, activation_sums, integer_record

__all__ = ["IntegerScales"]

_BLOCK = activation_block(1).itemsize


@dataclass(frozen=True)
class _Source:
    """The source of all that a half of a block has, 128 columns: tiles, or scratch. The functions are those of `Format`
    and `Integers`, and take the address p of a block, or of the record of a half."""

    codes: Callable[..., Any]
    small: Callable[..., Any]
    minima: Callable[..., Any]
    whole: Callable[..., Any]
    least: Callable[..., Any]


class IntegerScales:
    """The arithmetic of a format's linear kernel; the methods are those of `FloatScales`.

    Scratch has a record for 128 columns (`layouts.integer_record`).
    """

    def __init__(self, fmt: Format, words: bool) -> None:
        """words: `Isa.words`; then products are added in 16 bits, as many as fit (`Format.dwords`)."""
        assert fmt.integers is not None
        self._format, self._words = fmt, words
        layout, record = fmt.layout, integer_record(fmt.layout)
        steps, pair_bytes, has_offset, two_steps = (
            32 // layout.step,
            32 * layout.bytes,
            layout.offset,
            layout.step == 16,
        )
        signed_codes, small, whole = fmt.codes, fmt.integers.small, fmt.integers.whole
        least, minima = fmt.integers.least or whole, fmt.integers.minima or small
        sub, shifted = 1024 + 128 * steps, fmt.signed and not words

        @inlined
        def codes(p: Any, s: Any, k: Any) -> Any:
            return as_signed(signed_codes(p, s, k)) if shifted else signed_codes(p, s, k)

        @inlined
        def put(p: Any, s: Any, at: Any) -> None:
            for k in range(8):
                store_bytes(at + 128 * k, codes(p, s, k))
            for h in range(steps):
                store_i32(at + 1024 + 128 * h, small(p, s, h))

        @inlined
        def put_half(p: Any, s: Any, at: Any) -> None:
            put(p, s, at)
            put(p, s + 1, at + sub)
            put(p, s + 2, at + 2 * sub)
            put(p, s + 3, at + 3 * sub)
            at += 4 * sub
            store_f32(at, whole(p))
            if has_offset:
                store_f32(at + 128, least(p))
                store_i32(at + 256, minima(p, s))
                if two_steps:
                    store_i32(at + 384, minima(p, s + 1))
                    store_i32(at + 512, minima(p, s + 2))
                    store_i32(at + 640, minima(p, s + 3))
                else:
                    store_i32(at + 384, minima(p, s + 2))

        @inlined
        def take_apart(p: Any, blocks: Any, at: Any) -> None:
            for _ in range(blocks):
                put_half(p, 0, at)
                put_half(p, 4, at + record)
                p += pair_bytes
                at += 2 * record

        @inlined
        def put_codes(p: Any, s: Any, k: Any) -> Any:
            return load_bytes(p + sub * s + 128 * k)

        @inlined
        def put_small(p: Any, s: Any, h: Any) -> Any:
            return load_i32(p + sub * s + 1024 + 128 * h)

        @inlined
        def put_minima(p: Any, s: Any) -> Any:
            return load_i32(p + 4 * sub + 256 + (128 * s if two_steps else 64 * s))

        @inlined
        def put_whole(p: Any) -> Any:
            return load_f32(p + 4 * sub)

        @inlined
        def put_least(p: Any) -> Any:
            return load_f32(p + 4 * sub + 128)

        self.take_apart = take_apart
        self._tiles = _Source(codes, small, minima, whole, least)
        self._scratch = _Source(put_codes, put_small, put_minima, put_whole, put_least)

    def times(self, count: int, group: int, *, from_tiles: bool, pinned: bool) -> Any:
        """The function that multiplies two tiles with `count` tokens of a group; see `FloatScales.times`."""
        fmt, layout, words = self._format, self._format.layout, self._words
        source = self._tiles if from_tiles else self._scratch
        codes, small, minima, whole, least = source.codes, source.small, source.minima, source.whole, source.least
        each = Tokens(count, pinned=pinned)
        zeros, load_each, store_each, no_ints = each.zeros, each.load_each, each.store_each, each.no_ints
        add_words, add_whole, add_whole_and = each.add_words, each.add_whole, each.add_whole_and
        signed_pairs, pairs, add_products = each.signed_pairs, each.words(0), each.add_products
        steps, signed, has_offset, two_steps = 32 // layout.step, fmt.signed, layout.offset, layout.step == 16
        record, pair_bytes = integer_record(layout), 32 * layout.bytes
        sub_bytes = 4 * layout.bytes
        sums_bytes = activation_sums(1, layout.step, words).itemsize
        x_sub, x_scale, x_block = 32 * group, 128 * group, _BLOCK * group
        u_sub, u_pairs = sums_bytes * group, 8 * steps * group
        zero, dwords = fmt.zero, fmt.dwords
        eighths = 8 * zero // START_ZEROS[layout.step]
        assert 8 * zero % START_ZEROS[layout.step] == 0
        assert layout.step == 32 or not signed  # a step of 16 would have another start
        start_words, start = each.words({8: 0, 1: -3}.get(eighths, 0)), each.start
        product = each.add_pairs if words else each.dot_signed if signed else each.dot

        @inlined
        def scaled_product(sums: Any, left: Any, right: Any, x: Any) -> Any:
            ints, factor, other = sums
            return add_words(ints, signed_pairs(left, right, x), factor, other), factor, other

        two = two_dwords(codes, scaled_product if words and signed else product, group, sub_bytes)

        @inlined
        def begin(u: Any) -> Any:
            if words:
                return start_words(u) if zero else no_ints()
            one = start(u, signed_zero() if signed else eighths)
            return one, one

        @inlined
        def four_dwords(part: Any, p: Any, q: Any, s: Any, k: Any, x: Any, due: Any) -> Any:
            return two(two(part, p, q, s, k, x, due), p, q, s, k + 2, x, due)

        @inlined
        def sub_block(ints: Any, p: Any, q: Any, x: Any, u: Any, due: Any, s: Any) -> Any:
            """Multiply 32 columns."""
            left, right = small(p, s, 0), small(q, s, 0)
            if not words:
                part = four_dwords(begin(u), p, q, s, 0, x, due)
                if two_steps:
                    ints = add_products(ints, part, low_word(left), low_word(right))
                    part = four_dwords(begin(u + 4 * group), p, q, s, 4, x, due)
                    return add_products(ints, part, low_word(small(p, s, 1)), low_word(small(q, s, 1)))
                part = four_dwords(part, p, q, s, 4, x, due)
                return add_products(ints, part, low_word(left), low_word(right))
            if signed:
                return four_dwords(four_dwords((ints, left, right), p, q, s, 0, x, due), p, q, s, 4, x, due)[0]
            part = four_dwords(begin(u), p, q, s, 0, x, due)
            if two_steps:
                ints = add_words(ints, part, left, right)
                part = four_dwords(begin(u + 4 * group), p, q, s, 4, x, due)
                return add_words(ints, part, small(p, s, 1), small(q, s, 1))
            if dwords < 8:
                ints = add_words(ints, part, left, right)
                part = no_ints()
            return add_words(ints, four_dwords(part, p, q, s, 4, x, due), left, right)

        @inlined
        def add_minima(ints: Any, p: Any, q: Any, u: Any, s: Any) -> Any:
            return add_words(ints, pairs(u + u_pairs), minima(p, s), minima(q, s))

        @inlined
        def half(left: Any, right: Any, p: Any, q: Any, x: Any, u: Any, due: Any, s: Any) -> Any:
            """Multiply 128 columns, from sub-block s on, which is a constant, so that LLVM folds the shifts."""
            ints = sub_block(no_ints(), p, q, x, u, due, s)
            ints = sub_block(ints, p, q, x + x_sub, u + u_sub, due + sub_bytes, s + 1)
            ints = sub_block(ints, p, q, x + 2 * x_sub, u + 2 * u_sub, due + 2 * sub_bytes, s + 2)
            ints = sub_block(ints, p, q, x + 3 * x_sub, u + 3 * u_sub, due + 3 * sub_bytes, s + 3)
            d, e, to = whole(p), whole(q), x + x_scale
            if not has_offset:
                return add_whole(left, ints[0], d, to, 4), add_whole(right, ints[1], e, to, 4)
            few = add_minima(no_ints(), p, q, u, s)
            if two_steps:
                few = add_minima(few, p, q, u + u_sub, s + 1)
            few = add_minima(few, p, q, u + 2 * u_sub, s + 2)
            if two_steps:
                few = add_minima(few, p, q, u + 3 * u_sub, s + 3)
            left = add_whole_and(left, ints[0], d, few[0], least(p), to, 4)
            return left, add_whole_and(right, ints[1], e, few[1], least(q), to, 4)

        @inlined
        def times(p: Any, q: Any, blocks: Any, due: Any, x: Any, u: Any, out: Any, os: Any, add: Any) -> None:
            left, right = zeros(), zeros()
            if add:
                left, right = load_each(out, os), load_each(out + 64, os)
            if from_tiles:
                for _ in range(blocks):
                    left, right = half(left, right, p, q, x, u, due, 0)
                    left, right = half(left, right, p, q, x + x_block, u + 4 * u_sub, due + 4 * sub_bytes, 4)
                    p += pair_bytes
                    q += pair_bytes
                    due += pair_bytes
                    x += 2 * x_block
                    u += 8 * u_sub
            else:
                for _ in range(2 * blocks):
                    left, right = half(left, right, p, q, x, u, due, 0)
                    p += record
                    q += record
                    due += 4 * sub_bytes
                    x += x_block
                    u += 4 * u_sub
            store_each(out, os, left)
            store_each(out + 64, os, right)

        return times
