"""Operations on several tokens at a time: on tuples of vectors, one per token."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd import (
    F32,
    I32,
    I64,
    bytes64,
    call,
    f32x16,
    i32x16,
    load,
    multiply_add,
    operation,
    splat,
    store,
    zero_vector,
)

__all__ = ["Tokens"]

_F, _I, _B = f32x16.llvm, i32x16.llvm, bytes64.llvm


class Tokens:
    """Operations on tuples of `count` vectors, one per token. `first` is the address of the first token's numbers;
    those of the next tokens follow at distances of `stride` bytes."""

    def __init__(self, count: int) -> None:
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
                    x = b.bitcast(repeat(b, address(b, first, I64(4), token), I32, _I), _B)
                    for side, weights in enumerate((left, right)):
                        total = call(b, name, _I, b.extract_value(totals, (side, token)), weights, x)
                        result = b.insert_value(result, total, (side, token))
                return result

            return dot_pair

        @operation(floats)
        def zeros(b: Any) -> Any:
            return ir.Constant(ir.ArrayType(_F, count), [zero_vector(_F)] * count)

        @operation(ints, types.int64, types.int32)
        def start(b: Any, first: Any, eighths: Any) -> Any:
            def one(token: int) -> Any:  # the flags let LLVM see that 8 eighths are one; sums of NaN may overflow
                x = load(b, address(b, first, I64(4), token), I32)
                return splat(b, b.ashr(b.mul(x, eighths, flags=["nsw"]), I32(3), flags=["exact"]), _I)

            return each(_I, one)(b)

        @operation(floats, floats, ints, f32x16)
        def scale_ints(b: Any, sums: Any, totals: Any, scale: Any) -> Any:
            def one(token: int) -> Any:
                total = b.sitofp(b.extract_value(totals, token), _F)
                return multiply_add(b, total, scale, b.extract_value(sums, token))

            return each(_F, one)(b)

        @operation(floats, floats, floats, types.int64, types.int64)
        def add_scaled(b: Any, sums: Any, parts: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                scale = repeat(b, address(b, first, stride, token), F32, _F)
                return multiply_add(b, b.extract_value(parts, token), scale, b.extract_value(sums, token))

            return each(_F, one)(b)

        @operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_each(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = load(b, address(b, first, stride, token), _F)
                return multiply_add(b, x, factor, b.extract_value(sums, token))

            return each(_F, one)(b)

        @operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_one(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, _F)
                return multiply_add(b, x, factor, b.extract_value(sums, token))

            return each(_F, one)(b)

        @operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_seen(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, _F)
                seen = b.select(b.fcmp_ordered("==", x, zero_vector(_F)), zero_vector(_F), factor)
                return multiply_add(b, x, seen, b.extract_value(sums, token))

            return each(_F, one)(b)

        @operation(floats, floats, floats, f32x16)
        def add_times(b: Any, sums: Any, parts: Any, factor: Any) -> Any:
            return each(_F, lambda t: multiply_add(b, b.extract_value(parts, t), factor, b.extract_value(sums, t)))(b)

        @operation(floats, types.int64, types.int64)
        def load_each(b: Any, first: Any, stride: Any) -> Any:
            return each(_F, lambda token: load(b, address(b, first, stride, token), _F))(b)

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
