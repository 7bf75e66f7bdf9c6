"""SIMD registers as Numba values: vectors of 16 lanes, with Python's infix operators.

A vector is a Numba type whose data model is an LLVM vector, so a kernel is ordinary Python over local variables. LLVM
splits 16 lanes into the machine's registers: one with AVX-512, two with AVX2, four with NEON.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import lower_builtin, models, register_model, type_callable

from mistral_portable_numba.compiler.simd.emit import BYTES64, F32X16, I8, I32X16, splat

__all__ = ["Vector", "bytes64", "f32x16", "i32x16"]


class Vector(types.Type):
    """A Numba type whose values are LLVM vectors of this type."""

    def __init__(self, name: str, llvm: ir.VectorType) -> None:
        self.llvm = llvm
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


f32x16 = Vector("f32x16", F32X16)
i32x16 = Vector("i32x16", I32X16)
bytes64 = Vector("bytes64", BYTES64)
"""64 bytes: four columns of 16 rows. Row r has the bytes 4r..4r+3, which are lane r of the same bits as i32x16."""


def _infix(symbol: Any, vector: Vector, emit: Callable[..., Any]) -> None:
    """Define `vector symbol vector` and `vector symbol number`; the number fills all lanes."""

    @type_callable(symbol)
    def typer(context: Any) -> Any:
        def type_of(left: Any, right: Any) -> Any:
            if left is vector and (right is vector or isinstance(right, types.Number)):
                return vector
            return None

        return type_of

    @lower_builtin(symbol, vector, vector)
    def lower_vectors(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return emit(builder, *values)

    scalar = types.float32 if vector is f32x16 else types.int32

    @lower_builtin(symbol, vector, types.Number)
    def lower_number(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number = context.cast(builder, values[1], signature.args[1], scalar)
        if vector is bytes64:
            number = builder.trunc(number, I8)
        return emit(builder, values[0], splat(builder, number, vector.llvm))


for _symbol, _float, _int in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
):
    _infix(_symbol, f32x16, getattr(ir.IRBuilder, _float))
    _infix(_symbol, i32x16, getattr(ir.IRBuilder, _int))
_infix(operator.sub, bytes64, ir.IRBuilder.sub)
for _symbol, _int in (
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
):
    _infix(_symbol, i32x16, getattr(ir.IRBuilder, _int))
    _infix(_symbol, bytes64, getattr(ir.IRBuilder, _int))
_infix(operator.truediv, f32x16, ir.IRBuilder.fdiv)
