"""Single numbers in memory: `get` reads one at an address, `put` writes one."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import F32, F32X16, I8, I16, I16X16, I32, I64, call, load, splat, store
from mistral_portable_numba.compiler.simd.operation import operation

__all__ = [
    "get_bf16",
    "get_f16",
    "get_f32",
    "get_f64_as_f32",
    "get_i16",
    "get_i32",
    "get_i64",
    "put_f16",
    "put_f32",
    "put_i8",
    "put_i16",
    "put_i32",
    "put_i64",
]


@operation(types.int64, types.int64)
def get_i64(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return load(builder, address, I64)


@operation(types.int64, types.int64)
def get_i16(builder: Any, address: Any) -> Any:
    """The int16 at an address."""
    return builder.sext(load(builder, address, I16), I64)


@operation(types.int64, types.int64)
def get_i32(builder: Any, address: Any) -> Any:
    """The int32 at an address."""
    return builder.sext(load(builder, address, I32), I64)


@operation(types.float32, types.int64)
def get_f32(builder: Any, address: Any) -> Any:
    """The float32 at an address."""
    return load(builder, address, F32)


@operation(types.float32, types.int64)
def get_f16(builder: Any, address: Any) -> Any:
    """The float16 at an address."""
    half = splat(builder, load(builder, address, I16), I16X16)
    return builder.extract_element(call(builder, "mp.widen", F32X16, half), I32(0))


@operation(types.float32, types.int64)
def get_bf16(builder: Any, address: Any) -> Any:
    """The bfloat16 at an address: the upper half of a float32."""
    return builder.bitcast(builder.shl(builder.zext(load(builder, address, I16), I32), I32(16)), F32)


@operation(types.float32, types.int64)
def get_f64_as_f32(builder: Any, address: Any) -> Any:
    """The float64 at an address, rounded."""
    return builder.fptrunc(load(builder, address, ir.DoubleType()), F32)


@operation(types.void, types.int64, types.int64)
def put_i8(builder: Any, address: Any, value: Any) -> None:
    """Store the low byte of an integer."""
    store(builder, address, builder.trunc(value, I8))


@operation(types.void, types.int64, types.int64)
def put_i16(builder: Any, address: Any, value: Any) -> None:
    """Store the low 16 bits of an integer."""
    store(builder, address, builder.trunc(value, I16))


@operation(types.void, types.int64, types.int32)
def put_i32(builder: Any, address: Any, value: Any) -> None:
    """Store an int32."""
    store(builder, address, value)


@operation(types.void, types.int64, types.int64)
def put_i64(builder: Any, address: Any, value: Any) -> None:
    """Store an int64."""
    store(builder, address, value)


@operation(types.void, types.int64, types.float32)
def put_f16(builder: Any, address: Any, value: Any) -> None:
    """Store a number as float16."""
    half = call(builder, "mp.narrow", I16X16, splat(builder, value, F32X16))
    store(builder, address, builder.extract_element(half, I32(0)))


@operation(types.void, types.int64, types.float32)
def put_f32(builder: Any, address: Any, value: Any) -> None:
    """Store a float32."""
    store(builder, address, value)
