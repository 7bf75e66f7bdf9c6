"""The larger of two numbers where NaN may be lost, which is one instruction on x86."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import I32, I32X16
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import f32x16

__all__ = ["larger", "largest_lane"]


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), b, a)


@operation(f32x16, f32x16, f32x16)
def larger(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each lane; a if either is NaN."""
    return _larger(builder, a, b)


@operation(types.float32, f32x16)
def largest_lane(builder: Any, value: Any) -> Any:
    """The largest of the 16 lanes; any of them if one is NaN."""
    for width in (8, 4, 2, 1):
        order = [*range(width, 2 * width), *range(width)]
        mask = ir.Constant(I32X16, [*order, *[0] * (16 - len(order))])
        value = _larger(builder, value, builder.shuffle_vector(value, value, mask))
    return builder.extract_element(value, I32(0))
