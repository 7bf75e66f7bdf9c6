"""Arithmetic lane by lane, vectors of constants, and the square root of a number."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import F32, F32X16, I32X16, call, multiply_add, splat, zero_vector
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import f32x16, i32x16

__all__ = [
    "absolute",
    "all_f32",
    "all_i32",
    "fma",
    "keep_between",
    "keep_in",
    "lane_numbers",
    "maximum",
    "power_of_two",
    "square_root",
    "weighed",
    "where_less",
]


@operation(f32x16, types.float32)
def all_f32(builder: Any, value: Any) -> Any:
    """A number in all lanes."""
    return splat(builder, value, F32X16)


@operation(i32x16, types.int32)
def all_i32(builder: Any, value: Any) -> Any:
    """An integer in all lanes."""
    return splat(builder, value, I32X16)


@operation(i32x16)
def lane_numbers(builder: Any) -> Any:
    """0, 1, .. 15."""
    return ir.Constant(I32X16, list(range(16)))


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c; rounded once where the machine can."""
    return multiply_add(builder, a, b, c)


@operation(f32x16, f32x16, f32x16)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each lane; NaN if either is NaN."""
    return call(builder, "llvm.maximum.v16f32", F32X16, a, b)


@operation(f32x16, f32x16, types.float32, types.float32)
def keep_in(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """The lanes clamped to low..high; NaN stays NaN."""
    low, high = splat(builder, low, F32X16), splat(builder, high, F32X16)
    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


@operation(f32x16, f32x16)
def absolute(builder: Any, value: Any) -> Any:
    """|x|"""
    return call(builder, "llvm.fabs.v16f32", F32X16, value)


@operation(f32x16, i32x16)
def power_of_two(builder: Any, value: Any) -> Any:
    """2^n of integers n in -126..127."""
    biased = builder.add(value, ir.Constant(I32X16, [127] * 16))
    return builder.bitcast(builder.shl(biased, ir.Constant(I32X16, [23] * 16)), F32X16)


@operation(types.float32, types.float32)
def square_root(builder: Any, value: Any) -> Any:
    """The square root of a number, not of a vector."""
    return call(builder, "llvm.sqrt.f32", F32, value)


@operation(f32x16, f32x16, i32x16, types.int32, types.int32, types.float32)
def keep_between(builder: Any, value: Any, key: Any, low: Any, high: Any, other: Any) -> Any:
    """The lanes whose key is in low..high; the rest are `other`."""
    inside = builder.and_(
        builder.icmp_signed(">=", key, splat(builder, low, I32X16)),
        builder.icmp_signed("<=", key, splat(builder, high, I32X16)),
    )
    return builder.select(inside, value, splat(builder, other, F32X16))


@operation(f32x16, f32x16, f32x16, f32x16, f32x16)
def where_less(builder: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """yes where a < b, else no; no where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), yes, no)


@operation(f32x16, f32x16, f32x16)
def weighed(builder: Any, a: Any, factor: Any) -> Any:
    """a * factor, but 0 where the factor is 0, also of infinity and NaN."""
    nothing = zero_vector(F32X16)
    return builder.select(builder.fcmp_ordered("==", factor, nothing), nothing, builder.fmul(a, factor))
