"""Words: 16-bit numbers, two in each lane of an i32x16, as the factors of words that hold sums of products."""

from typing import Any

from llvmlite import ir

from mistral_portable_numba.compiler.simd.emit import BYTES64, I16, I32, I32X16
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, i32x16

__all__ = ["minus_32", "twice", "twice_signed", "two_bytes"]

_WORDS = ir.VectorType(I16, 32)
_ZERO = 64  # a byte of the second operand of the shuffles


def _shuffled(builder: Any, value: Any, order: list[int]) -> Any:
    """Words made of bytes of the same lane, by their index in it."""
    mask = [k if k == _ZERO else 4 * lane + k for lane in range(16) for k in order]
    picked = builder.shuffle_vector(value, ir.Constant(BYTES64, [0] * 64), ir.Constant(ir.VectorType(I32, 64), mask))
    return builder.bitcast(picked, I32X16)


def twice(index: int) -> Any:
    """The operation that makes byte `index` of each lane, 0..255, both of its words."""

    @operation(i32x16, bytes64)
    def both(builder: Any, value: Any) -> Any:
        return _shuffled(builder, value, [index, _ZERO, index, _ZERO])

    return both


def twice_signed(index: int) -> Any:
    """The operation that makes byte `index` of each lane, -128..127, both of its words."""

    @operation(i32x16, bytes64)
    def both(builder: Any, value: Any) -> Any:
        high = builder.bitcast(_shuffled(builder, value, [_ZERO, index, _ZERO, index]), _WORDS)
        return builder.bitcast(builder.ashr(high, ir.Constant(_WORDS, [8] * 32)), I32X16)

    return both


def two_bytes(index: int) -> Any:
    """The operation that makes the bytes `index` and index + 1 of each lane, 0..255, its words."""

    @operation(i32x16, bytes64)
    def both(builder: Any, value: Any) -> Any:
        return _shuffled(builder, value, [index, _ZERO, index + 1, _ZERO])

    return both


@operation(i32x16, i32x16)
def minus_32(builder: Any, value: Any) -> Any:
    """Words less 32."""
    return builder.bitcast(builder.sub(builder.bitcast(value, _WORDS), ir.Constant(_WORDS, [32] * 32)), I32X16)
