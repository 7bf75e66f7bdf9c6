"""Products of bytes with 16-bit numbers, 0 or more, or of any sign, of several rows at a time.

Machines multiply bytes with bytes, or words with words. Where products of words are the fastest (`Isa.words`), bytes
become words, and the 16-bit numbers stay as they are. Elsewhere these are split into a high and a low byte, each of
which is multiplied, and sum = 256 * high + low.
"""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import (
    BYTES64,
    F32,
    F32X16,
    I8,
    I16,
    I32,
    I32X16,
    I64,
    call,
    load,
    multiply_add,
    splat,
    store,
)
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, f32x16, i32x16

__all__ = ["Rows16", "larger_positive", "largest_positive"]

_WORDS = ir.VectorType(I16, 32)


class Rows16:
    """Operations on `count` rows of 16-bit numbers. `first` is the address of the first row; the next ones follow at
    distances of `stride` bytes. A row has two bytes for each number, in halves that are `apart` bytes apart."""

    def __init__(self, count: int, *, words: bool) -> None:
        """words: `Isa.words`."""
        parts = 1 if words else 2
        ints, floats = types.UniTuple(i32x16, parts * count), types.UniTuple(f32x16, count)
        array = ir.ArrayType(I32X16, parts * count)

        def repeat(b: Any, first: Any, stride: Any, row: int, kind: ir.Type = I32, vector: Any = I32X16) -> Any:
            return splat(b, load(b, b.add(first, b.mul(stride, I64(row))), kind), vector)

        def products(numbers_first: bool) -> Any:
            @operation(ints, ints, bytes64, types.int64, types.int64, types.int64)
            def add_products(b: Any, totals: Any, codes: Any, first: Any, stride: Any, apart: Any) -> Any:
                result = totals
                even, odd = _even_and_odd(b, codes) if words else (None, None)
                for row in range(count):
                    for half in range(2):
                        at = b.add(first, apart) if half else first
                        x, index = repeat(b, at, stride, row), row if words else 2 * row + half
                        total = b.extract_value(result, index)
                        if words:
                            total = call(b, "mp.add_words", I32X16, total, odd if half else even, x)
                        else:
                            # A low digit may be -128, too, which dot4_signed takes where products are not of `words`.
                            digits = b.bitcast(x, BYTES64)
                            pair = (digits, codes) if numbers_first else (codes, digits)
                            total = call(b, "mp.dot4_signed", I32X16, total, *pair)
                        result = b.insert_value(result, total, index)
                return result

            return add_products

        @operation(ints)
        def none(b: Any) -> Any:
            return ir.Constant(array, [ir.Constant(I32X16, [0] * 16)] * (parts * count))

        @operation(ints, types.int64, types.int64)
        def start(b: Any, first: Any, stride: Any) -> Any:
            result = ir.Constant(array, [ir.Constant(I32X16, [0] * 16)] * (parts * count))
            zero = b.neg(call(b, "mp.signed_zero", I32))
            for row in range(count):
                x = b.mul(load(b, b.add(first, b.mul(stride, I64(row))), I32), zero)
                result = b.insert_value(result, splat(b, x, I32X16), parts * row + parts - 1)
            return result

        @operation(floats, floats, ints, f32x16)
        def add_times(b: Any, sums: Any, totals: Any, factor: Any) -> Any:
            return packed(b, [multiply_add(b, x, factor, b.extract_value(sums, i)) for i, x in whole(b, totals)])

        @operation(floats, floats, ints, types.int64, types.int64)
        def add_scaled(b: Any, sums: Any, totals: Any, first: Any, stride: Any) -> Any:
            return packed(
                b,
                [
                    multiply_add(b, x, repeat(b, first, stride, i, F32, F32X16), b.extract_value(sums, i))
                    for i, x in whole(b, totals)
                ],
            )

        def whole(b: Any, totals: Any) -> list[tuple[int, Any]]:
            """The sums of each row, as float32."""
            found = []
            for row in range(count):
                total = b.extract_value(totals, parts * row)
                if not words:
                    high = b.shl(total, ir.Constant(I32X16, [8] * 16))
                    total = b.add(high, b.extract_value(totals, 2 * row + 1))
                found.append((row, b.sitofp(total, F32X16)))
            return found

        def packed(b: Any, values: list[Any]) -> Any:
            result = ir.Constant(ir.ArrayType(F32X16, count), ir.Undefined)
            for index, value in enumerate(values):
                result = b.insert_value(result, value, index)
            return result

        def put(positive: bool) -> Any:
            @operation(types.void, types.int64, types.int64, i32x16)
            def put_numbers(b: Any, at: Any, apart: Any, value: Any) -> None:
                if words:
                    numbers = b.trunc(value, ir.VectorType(I16, 16))
                    halves = [_picked(b, numbers, [4 * i + k for i in range(4) for k in (h, h + 2)]) for h in (0, 1)]
                else:  # the low byte has a sign, but where unsigned bytes can be multiplied with signed codes
                    up = I32(128)
                    if positive:
                        up = b.sub(up, call(b, "mp.signed_zero", I32))
                    high = b.lshr(b.add(value, splat(b, up, I32X16)), ir.Constant(I32X16, [8] * 16))
                    halves = [b.trunc(part, ir.VectorType(I8, 16)) for part in (high, value)]
                for half, part in enumerate(halves):
                    store(b, b.add(at, apart) if half else at, part)

            return put_numbers

        self.none = none
        """() -> totals: all 0."""
        self.start = start
        """(first, stride) -> totals: what `add_codes` must start from. There is the int32 sum of each row's numbers."""
        self.add_codes = products(numbers_first=False)
        """(totals, codes, first, stride, apart) -> totals + the sums of four products of each lane's codes, from
        `as_signed`, with four numbers of each row, which `put` has stored."""
        self.add_bytes = products(numbers_first=True)
        """(totals, codes, first, stride, apart) -> the same of plain codes, -127..127, with numbers 0..32512, which
        `put_positive` has stored."""
        self.add_times, self.add_scaled = add_times, add_scaled
        """(floats, totals, factor) -> floats + totals * factor. (floats, totals, first, stride) -> floats + totals *
        each row's float32."""
        self.put, self.put_positive = put(False), put(True)
        """(address, apart, numbers): store 16 numbers of a row, -32512..32512 or 0..32512: 16 bytes in each half."""


@operation(f32x16, f32x16, f32x16)
def larger_positive(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each lane, of numbers with the sign +; NaN if either is. Their bits are in the same order."""
    a, b = (builder.bitcast(value, I32X16) for value in (a, b))
    return builder.bitcast(builder.select(builder.icmp_unsigned("<", a, b), b, a), F32X16)


@operation(types.float32, f32x16)
def largest_positive(builder: Any, value: Any) -> Any:
    """The largest of 16 lanes with the sign +; NaN if one is."""
    bits = call(builder, "llvm.vector.reduce.umax.v16i32", I32, builder.bitcast(value, I32X16))
    return builder.bitcast(bits, F32)


def _even_and_odd(b: Any, codes: Any) -> tuple[Any, Any]:
    """The bytes 0 and 2 of each lane as its words, and the bytes 1 and 3."""
    eight, both = ir.Constant(_WORDS, [8] * 32), b.bitcast(codes, _WORDS)
    even, odd = b.ashr(b.shl(both, eight), eight), b.ashr(both, eight)
    return b.bitcast(even, I32X16), b.bitcast(odd, I32X16)


def _picked(b: Any, numbers: Any, order: list[int]) -> Any:
    return b.shuffle_vector(numbers, numbers, ir.Constant(ir.VectorType(I32, len(order)), order))
