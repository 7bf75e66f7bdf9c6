"""Vectors in memory: `load` reads one at an address, `store` writes one, `repeat` fills one with a value."""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function

from mistral_portable_numba.compiler.simd.emit import (
    BYTES64,
    F32,
    F32X16,
    I8,
    I16X16,
    I32,
    I32X16,
    I64,
    call,
    load,
    pointer,
    splat,
    store,
)
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, f32x16, i32x16

__all__ = [
    "load_bf16",
    "load_bytes",
    "load_f16",
    "load_f32",
    "load_i32",
    "prefetch",
    "prefetch_first",
    "repeat4",
    "repeat_f32",
    "store_bytes",
    "store_f16",
    "store_f32",
    "store_i8_apart",
    "store_i32",
    "store_i32_apart",
    "transpose4",
]


@operation(f32x16, types.int64)
def load_f32(builder: Any, address: Any) -> Any:
    """16 consecutive float32."""
    return load(builder, address, F32X16)


@operation(f32x16, types.int64)
def load_f16(builder: Any, address: Any) -> Any:
    """16 consecutive float16."""
    return call(builder, "mp.widen", F32X16, load(builder, address, I16X16))


@operation(f32x16, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    """16 consecutive bfloat16."""
    wide = builder.zext(load(builder, address, I16X16), I32X16)
    return builder.bitcast(builder.shl(wide, ir.Constant(I32X16, [16] * 16)), F32X16)


@operation(i32x16, types.int64)
def load_i32(builder: Any, address: Any) -> Any:
    """16 consecutive int32."""
    return load(builder, address, I32X16)


@operation(bytes64, types.int64)
def load_bytes(builder: Any, address: Any) -> Any:
    """64 consecutive bytes."""
    return load(builder, address, BYTES64)


@operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Prefetch the cache line at an address, which need not be valid."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer(builder, address, I8), I32(0), I32(2), I32(1)])


@operation(types.void, types.int64)
def prefetch_first(builder: Any, address: Any) -> None:
    """Prefetch the cache line at an address, which need not be valid, for the first-level cache."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer(builder, address, I8), I32(0), I32(3), I32(1)])


@operation(bytes64, types.int64)
def repeat4(builder: Any, address: Any) -> Any:
    """The four bytes at an address, 16 times: four columns of one token, to be multiplied with those of 16 rows."""
    return builder.bitcast(splat(builder, load(builder, address, I32), I32X16), BYTES64)


@operation(f32x16, types.int64)
def repeat_f32(builder: Any, address: Any) -> Any:
    """The float32 at an address in all lanes."""
    return splat(builder, load(builder, address, F32), F32X16)


@operation(types.void, types.int64, f32x16)
def store_f32(builder: Any, address: Any, value: Any) -> None:
    """Store 16 float32."""
    store(builder, address, value)


@operation(types.void, types.int64, i32x16)
def store_i32(builder: Any, address: Any, value: Any) -> None:
    """Store 16 int32."""
    store(builder, address, value)


@operation(types.void, types.int64, f32x16)
def store_f16(builder: Any, address: Any, value: Any) -> None:
    """Store 16 numbers as float16."""
    store(builder, address, call(builder, "mp.narrow", I16X16, value))


@operation(types.void, types.int64, types.int64, i32x16)
def store_i8_apart(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Store the low bytes of 16 integers in groups of four, `stride` bytes apart."""
    fours = builder.bitcast(builder.trunc(value, ir.VectorType(I8, 16)), ir.VectorType(I32, 4))
    for index in range(4):
        place = builder.add(address, builder.mul(stride, I64(index)))
        store(builder, place, builder.extract_element(fours, I32(index)))


@operation(types.void, types.int64, types.int64, i32x16)
def store_i32_apart(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Store 16 int32, `stride` bytes apart."""
    for index in range(16):
        place = builder.add(address, builder.mul(stride, I64(index)))
        store(builder, place, builder.extract_element(value, I32(index)))


@operation(types.void, types.int64, bytes64)
def store_bytes(builder: Any, address: Any, value: Any) -> None:
    """Store 64 bytes."""
    store(builder, address, value)


@operation(types.void, types.int64, types.int64, types.int64, types.int64)
def transpose4(builder: Any, source: Any, stride: Any, out: Any, apart: Any) -> None:
    """Transpose four rows of four dwords, `stride` bytes apart, into four columns, `apart` bytes apart."""
    four = ir.VectorType(I32, 4)

    def shuffle(a: Any, b: Any, *lanes: int) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(four, list(lanes)))

    rows = [load(builder, builder.add(source, builder.mul(stride, I64(row))), four) for row in range(4)]
    low = [shuffle(rows[i], rows[i + 1], 0, 4, 1, 5) for i in (0, 2)]
    high = [shuffle(rows[i], rows[i + 1], 2, 6, 3, 7) for i in (0, 2)]
    for column, (a, b) in enumerate((low, low, high, high)):
        lanes = (2, 3, 6, 7) if column % 2 else (0, 1, 4, 5)
        store(builder, builder.add(out, builder.mul(apart, I64(column))), shuffle(a, b, *lanes))
