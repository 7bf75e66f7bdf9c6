"""Conversions between the number types of vectors, and rounding."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import BYTES64, F32, F32X16, I16X16, I32, I32X16, I64, call, splat
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, f32x16, i32x16

__all__ = [
    "as_bytes",
    "as_f16_bits",
    "high_f16",
    "low_f16",
    "nearest",
    "nearest_i64",
    "pairs_of_bf16",
    "rounded",
    "rounded_to_bf16",
    "signed_byte",
    "to_f32",
]


@operation(f32x16, i32x16)
def to_f32(builder: Any, value: Any) -> Any:
    """Integers as float32."""
    return builder.sitofp(value, F32X16)


@operation(i32x16, f32x16)
def nearest(builder: Any, value: Any) -> Any:
    """The nearest integers, ties to even, of numbers below 2^22: their sum with 1.5 * 2^23 has no fraction bits."""
    magic = 12582912.0
    shifted = builder.fadd(value, ir.Constant(F32X16, [magic] * 16))
    return builder.sub(builder.bitcast(shifted, I32X16), ir.Constant(I32X16, [0x4B400000] * 16))


@operation(f32x16, f32x16)
def rounded(builder: Any, value: Any) -> Any:
    """The nearest integers, ties to even, of numbers below 2^22, as float32."""
    magic = ir.Constant(F32X16, [12582912.0] * 16)
    return builder.fsub(builder.fadd(value, magic), magic)


@operation(types.int64, types.float32)
def nearest_i64(builder: Any, value: Any) -> Any:
    """The nearest integer, ties to even, of a number below 2^22."""
    shifted = builder.fadd(value, F32(12582912.0))
    return builder.sext(builder.sub(builder.bitcast(shifted, I32), I32(0x4B400000)), I64)


@operation(f32x16, i32x16)
def low_f16(builder: Any, value: Any) -> Any:
    """The float16 in the low half of each lane."""
    return call(builder, "mp.widen", F32X16, builder.trunc(value, I16X16))


@operation(f32x16, i32x16)
def high_f16(builder: Any, value: Any) -> Any:
    """The float16 in the high half of each lane."""
    high = builder.lshr(value, ir.Constant(I32X16, [16] * 16))
    return call(builder, "mp.widen", F32X16, builder.trunc(high, I16X16))


@operation(i32x16, f32x16)
def as_f16_bits(builder: Any, value: Any) -> Any:
    """Each lane rounded to float16, whose bits are the low half of an int32."""
    return builder.zext(call(builder, "mp.narrow", I16X16, value), I32X16)


@operation(i32x16, f32x16, f32x16)
def pairs_of_bf16(builder: Any, low: Any, high: Any) -> Any:
    """32 numbers, cut off to bfloat16: number 2i is the low half of lane i, 2i + 1 the high half."""
    bits = [builder.bitcast(value, I32X16) for value in (low, high)]
    even, odd = (builder.shuffle_vector(*bits, ir.Constant(I32X16, list(range(i, 32, 2)))) for i in (0, 1))
    upper = builder.and_(odd, ir.Constant(I32X16, [0xFFFF0000] * 16))
    return builder.or_(builder.lshr(even, ir.Constant(I32X16, [16] * 16)), upper)


@operation(f32x16, f32x16)
def rounded_to_bf16(builder: Any, value: Any) -> Any:
    """Numbers rounded to bfloat16, ties to even. NaN stays NaN."""

    def all_lanes(number: int) -> Any:
        return ir.Constant(I32X16, [number] * 16)

    bits = builder.bitcast(value, I32X16)
    odd = builder.and_(builder.lshr(bits, all_lanes(16)), all_lanes(1))
    up = builder.add(builder.add(bits, all_lanes(0x7FFF)), odd)
    nan = builder.or_(bits, all_lanes(0x400000))
    kept = builder.select(builder.fcmp_unordered("uno", value, value), nan, up)
    return builder.bitcast(builder.and_(kept, all_lanes(0xFFFF0000)), F32X16)


@operation(bytes64, i32x16)
def as_bytes(builder: Any, value: Any) -> Any:
    """The same bits as bytes64."""
    return builder.bitcast(value, BYTES64)


@operation(i32x16, i32x16, types.int32)
def signed_byte(builder: Any, value: Any, index: Any) -> Any:
    """Byte `index` of each lane, sign-extended."""
    left = builder.sub(I32(24), builder.mul(index, I32(8)))
    up = builder.shl(value, splat(builder, left, I32X16))
    return builder.ashr(up, ir.Constant(I32X16, [24] * 16))
