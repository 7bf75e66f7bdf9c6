"""Sums of a tile's 16 rows and four tokens in squares of two rows and two tokens, as ARM's smmla adds them.

They are four vectors: rows 0 to 7 with tokens 0 and 1, rows 8 to 15 with these, then the same with tokens 2 and 3. Lane
2r + t of a vector belongs to its row r and its token t.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import (
    BYTES64,
    F32,
    F32X16,
    I32,
    I32X16,
    I64,
    call,
    load,
    multiply_add,
    store,
    zero_vector,
)
from mistral_portable_numba.compiler.simd.operation import operation
from mistral_portable_numba.compiler.simd.vectors import bytes64, f32x16, i32x16

__all__ = [
    "add_eight_columns",
    "add_scaled_squares",
    "eight_columns",
    "fma_squares",
    "load_squares",
    "no_squares",
    "scale_squares",
    "start_squares",
    "store_squares",
    "store_twice",
]

int_squares, float_squares = types.UniTuple(i32x16, 4), types.UniTuple(f32x16, 4)
_EACH_TWICE = [lane // 2 for lane in range(32)]
_ZIPPED = [lane // 2 + lane % 2 * 16 for lane in range(32)]


def _shuffled(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def _packed(builder: Any, values: Sequence[Any]) -> Any:
    result = ir.Constant(ir.ArrayType(values[0].type, len(values)), ir.Undefined)
    for index, value in enumerate(values):
        result = builder.insert_value(result, value, index)
    return result


def _each(builder: Any, one: Callable[..., Any], *squares: Any) -> Any:
    """Squares made by one(half, pair, *vectors): half 0 or 1 of the rows, pair 0 or 1 of the tokens."""
    made = [
        one(index % 2, index // 2, *(builder.extract_value(value, index) for value in squares)) for index in range(4)
    ]
    return _packed(builder, made)


def _of_tokens(builder: Any, first: Any, kind: ir.Type) -> list[Any]:
    """Four tokens' consecutive numbers, as lanes of the first pair and of the second."""
    four = load(builder, first, ir.VectorType(kind, 4))
    return [_shuffled(builder, four, four, [2 * pair, 2 * pair + 1] * 8) for pair in range(2)]


@operation(types.UniTuple(bytes64, 2), bytes64, bytes64)
def eight_columns(builder: Any, left: Any, right: Any) -> Any:
    """Eight columns of the rows 0 to 7, and of 8 to 15, row after row, from two dwords of 16 rows."""
    left, right = (builder.bitcast(value, I32X16) for value in (left, right))
    halves = (_shuffled(builder, left, right, _ZIPPED[half : half + 16]) for half in (0, 16))
    return _packed(builder, [builder.bitcast(half, BYTES64) for half in halves])


@operation(types.void, types.int64, f32x16)
def store_twice(builder: Any, address: Any, value: Any) -> None:
    """Store a number per row as lanes of squares: two vectors, 128 bytes apart."""
    for half in range(2):
        lanes = _EACH_TWICE[16 * half : 16 * half + 16]
        store(builder, builder.add(address, I64(128 * half)), _shuffled(builder, value, value, lanes))


@operation(float_squares)
def no_squares(builder: Any) -> Any:
    """Sums that are 0."""
    return ir.Constant(ir.ArrayType(F32X16, 4), [zero_vector(F32X16)] * 4)


@operation(int_squares, types.int64, types.int32)
def start_squares(builder: Any, first: Any, eighths: Any) -> Any:
    """Each token's int32, consecutive in memory, times eighths / 8, which is exact."""

    def times(value: Any) -> Any:
        one = builder.insert_element(ir.Constant(I32X16, ir.Undefined), eighths, I32(0))
        product = builder.mul(value, _shuffled(builder, one, one, [0] * 16), flags=["nsw"])
        return builder.ashr(product, ir.Constant(I32X16, [3] * 16), flags=["exact"])

    pairs = [times(value) for value in _of_tokens(builder, first, I32)]
    return _packed(builder, [pairs[0], pairs[0], pairs[1], pairs[1]])


@operation(int_squares, int_squares, bytes64, bytes64, types.int64)
def add_eight_columns(builder: Any, sums: Any, low: Any, high: Any, first: Any) -> Any:
    """Add products of eight columns of the rows 0 to 7 and 8 to 15, from `eight_columns`, with those of each token.

    first: the address of four tokens' dwords of codes, behind which those of the next four columns lie.
    """
    columns = [load(builder, builder.add(first, I64(16 * k)), ir.VectorType(I32, 4)) for k in range(2)]
    tokens = [
        _shuffled(builder, columns[0], columns[1], [2 * p, 2 * p + 4, 2 * p + 1, 2 * p + 5] * 4) for p in range(2)
    ]

    def one(half: int, pair: int, total: Any) -> Any:
        return call(builder, "mp.square", I32X16, total, (low, high)[half], builder.bitcast(tokens[pair], BYTES64))

    return _each(builder, one, sums)


@operation(float_squares, float_squares, int_squares, types.int64)
def scale_squares(builder: Any, sums: Any, totals: Any, scales: Any) -> Any:
    """sums + totals * a number per row, which `store_twice` stored."""
    factors = [load(builder, builder.add(scales, I64(128 * half)), F32X16) for half in range(2)]

    def one(half: int, pair: int, total: Any, value: Any) -> Any:
        return multiply_add(builder, builder.sitofp(value, F32X16), factors[half], total)

    return _each(builder, one, sums, totals)


@operation(float_squares, float_squares, types.int64, types.int64)
def fma_squares(builder: Any, sums: Any, offsets: Any, first: Any) -> Any:
    """sums + a number per row, which `store_twice` stored, times each token's float32, consecutive in memory."""
    factors = [load(builder, builder.add(offsets, I64(128 * half)), F32X16) for half in range(2)]
    tokens = _of_tokens(builder, first, F32)
    return _each(builder, lambda half, pair, total: multiply_add(builder, tokens[pair], factors[half], total), sums)


@operation(float_squares, float_squares, float_squares, types.int64)
def add_scaled_squares(builder: Any, sums: Any, parts: Any, first: Any) -> Any:
    """sums + parts * each token's float32, consecutive in memory."""
    tokens = _of_tokens(builder, first, F32)
    return _each(builder, lambda half, pair, total, part: multiply_add(builder, part, tokens[pair], total), sums, parts)


@operation(float_squares, types.int64, types.int64)
def load_squares(builder: Any, first: Any, stride: Any) -> Any:
    """The sums of 16 rows of each token, float32; those of the next token are `stride` bytes behind."""
    rows = [load(builder, builder.add(first, builder.mul(stride, I64(token))), F32X16) for token in range(4)]
    zipped = (_shuffled(builder, rows[p], rows[p + 1], _ZIPPED[half : half + 16]) for p in (0, 2) for half in (0, 16))
    return _packed(builder, list(zipped))


@operation(types.void, types.int64, types.int64, float_squares)
def store_squares(builder: Any, first: Any, stride: Any, sums: Any) -> None:
    """Store the sums of 16 rows of each token."""
    for token in range(4):
        low, high = (builder.extract_value(sums, token // 2 * 2 + half) for half in range(2))
        row = _shuffled(builder, low, high, [2 * r + token % 2 for r in range(16)])
        store(builder, builder.add(first, builder.mul(stride, I64(token))), row)
