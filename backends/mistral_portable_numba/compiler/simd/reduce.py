"""One number from the 16 lanes of a vector."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import F32X16, I32, I32X16, call
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import f32x16, i32x16

__all__ = ["first_lane", "first_pairs", "max_lanes", "sum_i32", "sum_lanes"]


@operation(types.float32, f32x16)
def first_lane(builder: Any, value: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(value, I32(0))


@operation(types.float32, f32x16)
def sum_lanes(builder: Any, value: Any) -> Any:
    """The sum of the 16 lanes, in a fixed tree order."""
    for width in (8, 4, 2, 1):
        order = [*range(width, 2 * width), *range(width)]
        mask = ir.Constant(I32X16, [*order, *[0] * (16 - len(order))])
        value = builder.fadd(value, builder.shuffle_vector(value, value, mask))
    return builder.extract_element(value, I32(0))


@operation(types.float32, f32x16)
def max_lanes(builder: Any, value: Any) -> Any:
    """The largest of the 16 lanes."""
    for width in (8, 4, 2, 1):
        order = [*range(width, 2 * width), *range(width)]
        mask = ir.Constant(I32X16, [*order, *[0] * (16 - len(order))])
        other = builder.shuffle_vector(value, value, mask)
        value = call(builder, "llvm.maximum.v16f32", F32X16, value, other)
    return builder.extract_element(value, I32(0))


@operation(types.int32, i32x16)
def sum_i32(builder: Any, value: Any) -> Any:
    """The sum of the 16 lanes."""
    return call(builder, "llvm.vector.reduce.add.v16i32", I32, value)


@operation(i32x16, i32x16)
def first_pairs(builder: Any, value: Any) -> Any:
    """The lanes 4k and 4k + 1, and 0 in the others."""
    return builder.and_(value, ir.Constant(I32X16, [-1, -1, 0, 0] * 4))
