"""Operations on several tokens at a time: on tuples of vectors, one per token."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import (
    BYTES64,
    F32,
    F32X16,
    I32,
    I32X16,
    I64,
    call,
    load,
    multiply_add,
    splat,
    store,
    zero_vector,
)
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, f32x16, i32x16

__all__ = ["Tokens"]


class Tokens:
    """Operations on tuples of `count` vectors, one per token. `first` is the address of the first token's numbers;
    those of the next tokens follow at distances of `stride` bytes."""

    def __init__(self, count: int, *, pinned: bool = False) -> None:
        """pinned: whether loads and prefetches stay between the products where they are written (LLVM would bunch
        them), and sums of products are added up there (LLVM would put that off, and has no registers for them)."""
        ints, floats = types.UniTuple(i32x16, count), types.UniTuple(f32x16, count)
        pair = types.UniTuple(ints, 2)

        def each(kind: ir.Type, emit: Callable[[int], Any]) -> Callable[[Any], Any]:
            def packed(builder: Any) -> Any:
                result = ir.Constant(ir.ArrayType(kind, count), ir.Undefined)
                for token in range(count):
                    result = builder.insert_value(result, emit(token), token)
                return result

            return packed

        def address(builder: Any, first: Any, stride: Any, token: int) -> Any:
            return builder.add(first, builder.mul(stride, I64(token)))

        def repeat(builder: Any, at: Any, kind: ir.Type, vector: ir.VectorType) -> Any:
            return splat(builder, load(builder, at, kind), vector)

        def dot(name: str) -> Any:
            @operation(pair, pair, bytes64, bytes64, types.int64)
            def dot_pair(b: Any, totals: Any, left: Any, right: Any, first: Any) -> Any:
                result = totals
                for token in range(count):
                    x = b.bitcast(repeat(b, address(b, first, I64(4), token), I32, I32X16), BYTES64)
                    for side, weights in enumerate((left, right)):
                        total = call(b, name, I32X16, b.extract_value(totals, (side, token)), weights, x)
                        if pinned:
                            total = call(b, "mp.pin", I32X16, total)
                        result = b.insert_value(result, total, (side, token))
                return result

            return dot_pair

        def products(name: str, *, added: bool) -> Any:
            @operation(pair, *([pair] if added else []), bytes64, bytes64, types.int64)
            def words_of_pair(b: Any, *values: Any) -> Any:
                *totals, left, right, first = values
                result = ir.Constant(ir.ArrayType(ir.ArrayType(I32X16, count), 2), ir.Undefined)
                for token in range(count):
                    x = b.bitcast(repeat(b, address(b, first, I64(4), token), I32, I32X16), BYTES64)
                    for side, weights in enumerate((left, right)):
                        before = [b.extract_value(total, (side, token)) for total in totals]
                        words = call(b, name, I32X16, *before, weights, x)
                        if pinned and added:
                            words = call(b, "mp.pin", I32X16, words)
                        result = b.insert_value(result, words, (side, token))
                return result

            return words_of_pair

        @operation(pair)
        def no_ints(b: Any) -> Any:
            zero = ir.Constant(I32X16, [0] * 16)
            return ir.Constant(ir.ArrayType(ir.ArrayType(I32X16, count), 2), [[zero] * count] * 2)

        def words(shift: int) -> Any:
            @operation(pair, types.int64)
            def words_of(b: Any, first: Any) -> Any:
                two = ir.VectorType(ir.IntType(16), 2)
                result = ir.Constant(ir.ArrayType(ir.ArrayType(I32X16, count), 2), ir.Undefined)
                for token in range(count):
                    x = load(b, address(b, first, I64(4), token), two)
                    by = ir.Constant(two, [abs(shift)] * 2)
                    x = b.shl(x, by) if shift >= 0 else b.ashr(x, by)
                    both = splat(b, b.bitcast(x, I32), I32X16)
                    for side in range(2):
                        result = b.insert_value(result, both, (side, token))
                return result

            return words_of

        @operation(pair, pair, pair, i32x16, i32x16)
        def add_words(b: Any, totals: Any, words: Any, left: Any, right: Any) -> Any:
            result = totals
            for token in range(count):
                for side, factors in enumerate((left, right)):
                    values = (b.extract_value(value, (side, token)) for value in (totals, words))
                    total = call(b, "mp.add_words", I32X16, *values, factors)
                    if pinned:
                        total = call(b, "mp.pin", I32X16, total)
                    result = b.insert_value(result, total, (side, token))
            return result

        @operation(pair, pair, pair, i32x16, i32x16)
        def add_products(b: Any, totals: Any, sums: Any, left: Any, right: Any) -> Any:
            result = totals
            for token in range(count):
                for side, factors in enumerate((left, right)):
                    total, value = (b.extract_value(values, (side, token)) for values in (totals, sums))
                    result = b.insert_value(result, b.add(total, b.mul(value, factors)), (side, token))
            return result

        @operation(floats, floats, ints, f32x16, types.int64, types.int64)
        def add_whole(b: Any, sums: Any, totals: Any, scale: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, F32X16)
                total = b.fmul(b.sitofp(b.extract_value(totals, token), F32X16), scale)
                return multiply_add(b, total, x, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats, floats, ints, f32x16, ints, f32x16, types.int64, types.int64)
        def add_whole_and(
            b: Any, sums: Any, totals: Any, scale: Any, minima: Any, offset: Any, first: Any, stride: Any
        ) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, F32X16)
                total, least = (b.sitofp(b.extract_value(value, token), F32X16) for value in (totals, minima))
                total = multiply_add(b, least, offset, b.fmul(total, scale))
                return multiply_add(b, total, x, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats)
        def zeros(b: Any) -> Any:
            return ir.Constant(ir.ArrayType(F32X16, count), [zero_vector(F32X16)] * count)

        @operation(ints, types.int64, types.int32)
        def start(b: Any, first: Any, eighths: Any) -> Any:
            def one(token: int) -> Any:  # the flags let LLVM see that 8 eighths are one; sums of NaN may overflow
                x = load(b, address(b, first, I64(4), token), I32)
                return splat(b, b.ashr(b.mul(x, eighths, flags=["nsw"]), I32(3), flags=["exact"]), I32X16)

            return each(I32X16, one)(b)

        @operation(floats, floats, ints, f32x16)
        def scale_ints(b: Any, sums: Any, totals: Any, scale: Any) -> Any:
            def one(token: int) -> Any:
                total = b.sitofp(b.extract_value(totals, token), F32X16)
                return multiply_add(b, total, scale, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats, floats, floats, types.int64, types.int64)
        def add_scaled(b: Any, sums: Any, parts: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                scale = repeat(b, address(b, first, stride, token), F32, F32X16)
                return multiply_add(b, b.extract_value(parts, token), scale, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_each(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = load(b, address(b, first, stride, token), F32X16)
                return multiply_add(b, x, factor, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_one(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, F32X16)
                return multiply_add(b, x, factor, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_seen(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, F32X16)
                seen = b.select(b.fcmp_ordered("==", x, zero_vector(F32X16)), zero_vector(F32X16), factor)
                return multiply_add(b, x, seen, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats, floats, floats, f32x16)
        def add_times(b: Any, sums: Any, parts: Any, factor: Any) -> Any:
            def one(token: int) -> Any:
                return multiply_add(b, b.extract_value(parts, token), factor, b.extract_value(sums, token))

            return each(F32X16, one)(b)

        @operation(floats, types.int64, types.int64)
        def load_each(b: Any, first: Any, stride: Any) -> Any:
            return each(F32X16, lambda token: load(b, address(b, first, stride, token), F32X16))(b)

        @operation(types.void, types.int64, types.int64, floats)
        def store_each(b: Any, first: Any, stride: Any, values: Any) -> None:
            for token in range(count):
                store(b, address(b, first, stride, token), b.extract_value(values, token))

        self.zeros = zeros
        """() -> floats: all 0."""
        self.start = start
        """(first, eighths) -> ints: each token's int32, consecutive in memory, times eighths / 8, which is exact."""
        self.dot, self.dot_signed = dot("mp.dot4"), dot("mp.dot4_signed")
        """((ints, ints), left, right, first) -> (ints, ints): plus the products of the codes of two tiles and each
        token's four codes."""
        self.no_ints = no_ints
        """() -> (ints, ints): all 0."""
        self.words = words
        """words(shift): (first) -> (words, words): each token's two int16, consecutive in memory, times 2^shift."""
        self.add_pairs, self.signed_pairs = (
            products("mp.add_pairs", added=True),
            products("mp.signed_pairs", added=False),
        )
        """((words, words), left, right, first) -> (words, words): plus sums of two products of codes. signed_pairs:
        of signed codes, -127..127, added to nothing."""
        self.add_words = add_words
        """((ints, ints), (words, words), left, right) -> (ints, ints): plus the words of each lane, times the factors
        in the lanes of left and right."""
        self.add_products = add_products
        """((ints, ints), (sums, sums), left, right) -> (ints, ints): plus the sums, times the factors in the lanes of
        left and right."""
        self.add_whole, self.add_whole_and = add_whole, add_whole_and
        """(floats, ints, scale, first, stride) -> floats + ints * scale * each token's float32. add_whole_and takes
        ints and a scale twice, and adds both products."""
        self.scale_ints = scale_ints
        """(floats, ints, scale) -> floats + ints * scale."""
        self.add_scaled = add_scaled
        """(floats, parts, first, stride) -> floats + parts * each token's float32."""
        self.fma_each = fma_each
        """(floats, factor, first, stride) -> floats + factor * each token's 16 float32."""
        self.fma_one = fma_one
        """(floats, factor, first, stride) -> floats + factor * each token's float32."""
        self.fma_seen = fma_seen
        """(floats, factor, first, stride) -> like fma_one, but numbers multiplied with 0 may be infinite or NaN."""
        self.add_times = add_times
        """(floats, parts, factor) -> floats + parts * factor."""
        self.load_each, self.store_each = load_each, store_each
        """(first, stride) -> floats: 16 float32 per token. (first, stride, floats) -> None: store them."""
