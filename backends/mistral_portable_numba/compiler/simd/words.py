"""Words: 16-bit numbers, two in each lane of an i32x16, as the factors of words that hold sums of products."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import BYTES64, I16, I32, I32X16
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, i32x16

__all__ = ["low_word", "minus_32", "products_in_bytes", "times_words", "twice", "twice_signed", "two_bytes"]

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


def products_in_bytes(zero: int, signed: bool) -> Any:
    """The operation (codes, factors) -> (low, high): bytes of the products of each code less a zero point with a word.

    A product, less than 2^15, is 256 * high + low. signed: whether codes are int8, else they are uint8. Both words of a
    lane of factors are the same.
    """
    eight, low_bytes = ir.Constant(_WORDS, [8] * 32), ir.Constant(_WORDS, [255] * 32)

    @operation(types.UniTuple(bytes64, 2), bytes64, i32x16)
    def low_and_high(b: Any, codes: Any, factors: Any) -> Any:
        codes, factors = b.bitcast(codes, _WORDS), b.bitcast(factors, _WORDS)
        if signed:
            even, odd = b.ashr(b.shl(codes, eight), eight), b.ashr(codes, eight)
        else:
            even, odd = b.and_(codes, low_bytes), b.lshr(codes, eight)
        if zero:
            even, odd = (b.sub(part, ir.Constant(_WORDS, [zero] * 32)) for part in (even, odd))
        even, odd = b.mul(even, factors), b.mul(odd, factors)
        low = b.or_(b.and_(even, low_bytes), b.shl(odd, eight))
        high = b.or_(b.lshr(even, eight), b.and_(odd, ir.Constant(_WORDS, [0xFF00] * 32)))
        result = ir.Constant(ir.ArrayType(BYTES64, 2), ir.Undefined)
        for index, part in enumerate((low, high)):
            result = b.insert_value(result, b.bitcast(part, BYTES64), index)
        return result

    return low_and_high


@operation(bytes64, bytes64, i32x16)
def times_words(builder: Any, codes: Any, factors: Any) -> Any:
    """The products of bytes with the words of factors, which are less than 256, so that none reaches the next byte."""
    product = builder.mul(builder.bitcast(codes, _WORDS), builder.bitcast(factors, _WORDS))
    return builder.bitcast(product, BYTES64)


@operation(i32x16, i32x16)
def low_word(builder: Any, value: Any) -> Any:
    """The low word of each lane, -2^15..2^15 - 1."""
    sixteen = ir.Constant(I32X16, [16] * 16)
    return builder.ashr(builder.shl(value, sixteen), sixteen)


@operation(i32x16, i32x16)
def minus_32(builder: Any, value: Any) -> Any:
    """Words less 32."""
    return builder.bitcast(builder.sub(builder.bitcast(value, _WORDS), ir.Constant(_WORDS, [32] * 32)), I32X16)
