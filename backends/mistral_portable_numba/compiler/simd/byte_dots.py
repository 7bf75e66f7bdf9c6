"""Dot products of bytes, and the forms that weights take for them."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import BYTES64, I8, I32, I32X16, call
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, i32x16

__all__ = ["as_signed", "dot4", "dot4_signed", "signed_zero", "table_of"]


@operation(i32x16, i32x16, bytes64, bytes64)
def dot4(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """total + the four products of each lane; weights 0..127, x -127..127."""
    return call(builder, "mp.dot4", I32X16, total, weights, x)


@operation(bytes64, bytes64)
def as_signed(builder: Any, weights: Any) -> Any:
    """Weights -128..127 in the form that `dot4_signed` takes: with `signed_zero` added."""
    return call(builder, "mp.signed", BYTES64, weights)


@operation(i32x16, i32x16, bytes64, bytes64)
def dot4_signed(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """total + the four products of each lane; weights from `as_signed`, x -127..127."""
    return call(builder, "mp.dot4_signed", I32X16, total, weights, x)


@operation(types.int32)
def signed_zero(builder: Any) -> Any:
    """The number that `as_signed` adds to weights on this instruction set: 128 or 0."""
    return call(builder, "mp.signed_zero", I32)


def table_of(*values: int) -> Any:
    """The operation values[index] on each byte, index 0..15; values are 16 int8."""

    @operation(bytes64, bytes64)
    def lookup(builder: Any, index: Any) -> Any:
        return call(builder, "mp.lookup", BYTES64, index, ir.Constant(ir.VectorType(I8, 16), list(values)))

    return lookup
