"""SIMD registers as Numba values: vectors of 16 lanes, and the operations that kernels are written in.

A vector is a Numba type whose data model is an LLVM vector, so a kernel is ordinary Python over local variables. LLVM
splits 16 lanes into what the machine has: one register with AVX-512, two with AVX2, four with NEON. Addresses are int64
everywhere (in Numba, int64 + uint64 is a float64). Nothing that is loaded or stored need be aligned.

What LLVM has no portable operation for is a call of a function `mp.*`, defined per instruction set in `isa.py`.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
_Emit = Callable[..., Any]


class Vector(types.Type):
    """`lanes` numbers of an LLVM type."""

    def __init__(self, name: str, element: ir.Type, lanes: int) -> None:
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


f32x16 = Vector("f32x16", F32, 16)
i32x16 = Vector("i32x16", I32, 16)
bytes64 = Vector("bytes64", I8, 64)
"""64 bytes: four columns of 16 rows. Row r's are the bytes 4r..4r+3, which are lane r when read as i32x16."""

_F, _I, _B, _H = f32x16.llvm, i32x16.llvm, bytes64.llvm, ir.VectorType(I16, 16)


# --- making operations ---------------------------------------------------------------------------------------------


def _operation(result: types.Type, *parameters: types.Type) -> Callable[[_Emit], Any]:
    """Make a Numba intrinsic of a function (builder, *values) -> value, or None where there is no result."""

    def make(emit: _Emit) -> Any:
        def definition(typing: Any, *arguments: Any) -> Any:
            return result(*parameters), codegen

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        names = ["typing", *(f"a{index}" for index in range(len(parameters)))]  # numba asks how many there are
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        definition.__dict__["__signature__"] = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        definition.__name__, definition.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(definition)

    return make


def _infix(symbol: Any, vector: Vector, emit: _Emit) -> None:
    """Let `vector symbol vector` and `vector symbol number` be written; the number fills all lanes."""

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
for _symbol, _int in (
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
):
    _infix(_symbol, i32x16, getattr(ir.IRBuilder, _int))
    _infix(_symbol, bytes64, getattr(ir.IRBuilder, _int))
_infix(operator.truediv, f32x16, ir.IRBuilder.fdiv)
_infix(operator.add, bytes64, ir.IRBuilder.add)


def splat(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """All lanes = value."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def _zeros(vector: ir.VectorType) -> ir.Constant:
    return ir.Constant(vector, [0.0] * vector.count)


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return _call(builder, "llvm.fmuladd.v16f32", _F, a, b, c)


def _at(builder: ir.IRBuilder, address: ir.Value, to: ir.Type) -> ir.Value:
    """The pointer of an address. A function, as LLVM, on its way to machine code for Numba's own process, rewrites
    `inttoptr(a + b)` into `inttoptr(a) + b`, which kernels that are linked from that would take for a null pointer."""
    return builder.bitcast(_call(builder, "mp.pointer", I8.as_pointer(), address), to.as_pointer())


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.load(_at(builder, address, kind), align=1)


def _store(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    builder.store(value, _at(builder, address, value.type), align=1)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic or one of `isa.py`'s functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(get_or_insert_function(builder.module, kind, name), arguments)


# --- scalars in memory ---------------------------------------------------------------------------------------------


@_operation(types.int64, types.int64)
def get_i64(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return _load(builder, address, I64)


@_operation(types.int64, types.int64)
def get_i32(builder: Any, address: Any) -> Any:
    """The int32 at an address."""
    return builder.sext(_load(builder, address, I32), I64)


@_operation(types.float32, types.int64)
def get_f32(builder: Any, address: Any) -> Any:
    """The float32 at an address."""
    return _load(builder, address, F32)


@_operation(types.float32, types.int64)
def get_f16(builder: Any, address: Any) -> Any:
    """The float16 at an address."""
    half = splat(builder, _load(builder, address, I16), _H)
    return builder.extract_element(_call(builder, "mp.widen", _F, half), I32(0))


@_operation(types.float32, types.int64)
def get_bf16(builder: Any, address: Any) -> Any:
    """The bfloat16 at an address: the upper half of a float32."""
    return builder.bitcast(builder.shl(builder.zext(_load(builder, address, I16), I32), I32(16)), F32)


@_operation(types.void, types.int64, types.int32)
def put_i32(builder: Any, address: Any, value: Any) -> None:
    """Store an int32."""
    _store(builder, address, value)


@_operation(types.void, types.int64, types.float32)
def put_f32(builder: Any, address: Any, value: Any) -> None:
    """Store a float32."""
    _store(builder, address, value)


@_operation(types.void, types.int64, types.float32)
def put_f16(builder: Any, address: Any, value: Any) -> None:
    """Store a number as float16."""
    half = _call(builder, "mp.narrow", _H, splat(builder, value, _F))
    _store(builder, address, builder.extract_element(half, I32(0)))


@_operation(types.void, types.int64, types.int64)
def put_i8(builder: Any, address: Any, value: Any) -> None:
    """Store the low byte of an integer."""
    _store(builder, address, builder.trunc(value, I8))


@_operation(types.void, types.int64, types.int64)
def put_i16(builder: Any, address: Any, value: Any) -> None:
    """Store the low 16 bits of an integer."""
    _store(builder, address, builder.trunc(value, I16))


@_operation(types.int64, types.int64)
def get_i16(builder: Any, address: Any) -> Any:
    """The int16 at an address."""
    return builder.sext(_load(builder, address, I16), I64)


# --- vectors in memory ---------------------------------------------------------------------------------------------


@_operation(f32x16, types.int64)
def load_f32(builder: Any, address: Any) -> Any:
    """16 consecutive float32."""
    return _load(builder, address, _F)


@_operation(f32x16, types.int64)
def load_f16(builder: Any, address: Any) -> Any:
    """16 consecutive float16."""
    return _call(builder, "mp.widen", _F, _load(builder, address, _H))


@_operation(f32x16, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    """16 consecutive bfloat16."""
    wide = builder.zext(_load(builder, address, _H), _I)
    return builder.bitcast(builder.shl(wide, ir.Constant(_I, [16] * 16)), _F)


@_operation(f32x16, types.int64)
def load_i8(builder: Any, address: Any) -> Any:
    """16 consecutive int8, as float32."""
    return builder.sitofp(builder.sext(_load(builder, address, ir.VectorType(I8, 16)), _I), _F)


@_operation(i32x16, types.int64)
def load_i32(builder: Any, address: Any) -> Any:
    """16 consecutive int32."""
    return _load(builder, address, _I)


@_operation(bytes64, types.int64)
def load_bytes(builder: Any, address: Any) -> Any:
    """64 consecutive bytes."""
    return _load(builder, address, _B)


@_operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, which need not be valid."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [_at(builder, address, I8), I32(0), I32(3), I32(1)])


@_operation(bytes64, types.int64)
def repeat4(builder: Any, address: Any) -> Any:
    """The four bytes at an address, 16 times: four columns of one token, beside those of 16 rows."""
    return builder.bitcast(splat(builder, _load(builder, address, I32), _I), _B)


@_operation(f32x16, types.int64)
def repeat_f32(builder: Any, address: Any) -> Any:
    """The float32 at an address in all lanes."""
    return splat(builder, _load(builder, address, F32), _F)


@_operation(types.void, types.int64, f32x16)
def store_f32(builder: Any, address: Any, value: Any) -> None:
    """Store 16 float32."""
    _store(builder, address, value)


@_operation(types.void, types.int64, i32x16)
def store_i32(builder: Any, address: Any, value: Any) -> None:
    """Store 16 int32."""
    _store(builder, address, value)


@_operation(types.void, types.int64, f32x16)
def store_f16(builder: Any, address: Any, value: Any) -> None:
    """Store 16 numbers as float16."""
    _store(builder, address, _call(builder, "mp.narrow", _H, value))


@_operation(types.void, types.int64, i32x16)
def store_i8(builder: Any, address: Any, value: Any) -> None:
    """Store the low bytes of 16 integers."""
    _store(builder, address, builder.trunc(value, ir.VectorType(I8, 16)))


@_operation(types.void, types.int64, bytes64)
def store_bytes(builder: Any, address: Any, value: Any) -> None:
    """Store 64 bytes."""
    _store(builder, address, value)


# --- lanes ---------------------------------------------------------------------------------------------------------


@_operation(f32x16, types.float32)
def all_f32(builder: Any, value: Any) -> Any:
    """A number in all lanes."""
    return splat(builder, value, _F)


@_operation(i32x16, types.int32)
def all_i32(builder: Any, value: Any) -> Any:
    """An integer in all lanes."""
    return splat(builder, value, _I)


@_operation(i32x16)
def lane_numbers(builder: Any) -> Any:
    """0, 1, .. 15."""
    return ir.Constant(_I, list(range(16)))


@_operation(f32x16, i32x16)
def to_f32(builder: Any, value: Any) -> Any:
    """Integers as float32."""
    return builder.sitofp(value, _F)


@_operation(i32x16, f32x16)
def nearest(builder: Any, value: Any) -> Any:
    """The nearest integers, ties to even, of numbers below 2^22: their sum with 1.5 * 2^23 has no fraction bits."""
    magic = 12582912.0
    shifted = builder.fadd(value, ir.Constant(_F, [magic] * 16))
    return builder.sub(builder.bitcast(shifted, _I), ir.Constant(_I, [0x4B400000] * 16))


@_operation(types.int64, types.float32)
def nearest_i64(builder: Any, value: Any) -> Any:
    """The nearest integer, ties to even, of a number below 2^22."""
    shifted = builder.fadd(value, F32(12582912.0))
    return builder.sext(builder.sub(builder.bitcast(shifted, I32), I32(0x4B400000)), I64)


@_operation(f32x16, i32x16)
def low_f16(builder: Any, value: Any) -> Any:
    """The float16 in the low half of each lane."""
    return _call(builder, "mp.widen", _F, builder.trunc(value, _H))


@_operation(f32x16, i32x16)
def high_f16(builder: Any, value: Any) -> Any:
    """The float16 in the high half of each lane."""
    high = builder.lshr(value, ir.Constant(_I, [16] * 16))
    return _call(builder, "mp.widen", _F, builder.trunc(high, _H))


@_operation(bytes64, i32x16)
def as_bytes(builder: Any, value: Any) -> Any:
    """The same bits as bytes64."""
    return builder.bitcast(value, _B)


@_operation(i32x16, i32x16, types.int32)
def signed_byte(builder: Any, value: Any, index: Any) -> Any:
    """Byte `index` of each lane, sign-extended."""
    left = builder.sub(I32(24), builder.mul(index, I32(8)))
    up = builder.shl(value, splat(builder, left, _I))
    return builder.ashr(up, ir.Constant(_I, [24] * 16))


@_operation(f32x16, f32x16, f32x16, f32x16)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c; rounded once where the machine can."""
    return _fma(builder, a, b, c)


@_operation(f32x16, f32x16, f32x16)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each lane; NaN where either is."""
    return _call(builder, "llvm.maximum.v16f32", _F, a, b)


@_operation(f32x16, f32x16, types.float32, types.float32)
def keep_in(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """The lanes limited to low..high; NaN stays."""
    low, high = splat(builder, low, _F), splat(builder, high, _F)
    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


@_operation(f32x16, f32x16)
def absolute(builder: Any, value: Any) -> Any:
    """|x|"""
    return _call(builder, "llvm.fabs.v16f32", _F, value)


@_operation(f32x16, i32x16)
def power_of_two(builder: Any, value: Any) -> Any:
    """2^n of integers n in -126..127."""
    biased = builder.add(value, ir.Constant(_I, [127] * 16))
    return builder.bitcast(builder.shl(biased, ir.Constant(_I, [23] * 16)), _F)


@_operation(types.float32, types.float32)
def square_root(builder: Any, value: Any) -> Any:
    """The square root."""
    return _call(builder, "llvm.sqrt.f32", F32, value)


@_operation(types.float32, types.int64)
def get_f64_as_f32(builder: Any, address: Any) -> Any:
    """The float64 at an address, rounded."""
    return builder.fptrunc(_load(builder, address, ir.DoubleType()), F32)


@_operation(types.float32, f32x16)
def first_lane(builder: Any, value: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(value, I32(0))


@_operation(types.float32, f32x16)
def sum_lanes(builder: Any, value: Any) -> Any:
    """The sum of the 16 lanes, in a fixed tree order."""
    for width in (8, 4, 2, 1):
        order = [*range(width, 2 * width), *range(width)]
        mask = ir.Constant(ir.VectorType(I32, 16), [*order, *[0] * (16 - len(order))])
        value = builder.fadd(value, builder.shuffle_vector(value, value, mask))
    return builder.extract_element(value, I32(0))


@_operation(types.float32, f32x16)
def max_lanes(builder: Any, value: Any) -> Any:
    """The largest of the 16 lanes."""
    for width in (8, 4, 2, 1):
        order = [*range(width, 2 * width), *range(width)]
        mask = ir.Constant(ir.VectorType(I32, 16), [*order, *[0] * (16 - len(order))])
        other = builder.shuffle_vector(value, value, mask)
        value = _call(builder, "llvm.maximum.v16f32", _F, value, other)
    return builder.extract_element(value, I32(0))


@_operation(types.int32, i32x16)
def sum_i32(builder: Any, value: Any) -> Any:
    """The sum of the 16 lanes."""
    return _call(builder, "llvm.vector.reduce.add.v16i32", I32, value)


@_operation(f32x16, f32x16, i32x16, types.int32, types.int32, types.float32)
def keep_between(builder: Any, value: Any, key: Any, low: Any, high: Any, other: Any) -> Any:
    """The lanes whose key is in low..high; the rest are `other`."""
    inside = builder.and_(
        builder.icmp_signed(">=", key, splat(builder, low, _I)),
        builder.icmp_signed("<=", key, splat(builder, high, _I)),
    )
    return builder.select(inside, value, splat(builder, other, _F))


@_operation(i32x16, i32x16, types.int32, i32x16, i32x16)
def where_at_most(builder: Any, key: Any, bound: Any, yes: Any, no: Any) -> Any:
    """yes where key <= bound, else no."""
    return builder.select(builder.icmp_signed("<=", key, splat(builder, bound, _I)), yes, no)


# --- bytes times bytes ---------------------------------------------------------------------------------------------


@_operation(i32x16, i32x16, bytes64, bytes64)
def dot4(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """total + the four products of each lane; weights 0..127, x -128..127."""
    return _call(builder, "mp.dot4", _I, total, weights, x)


@_operation(i32x16, i32x16, bytes64, bytes64)
def dot4_signed(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """total + the four (weight + signed_zero()) * x of each lane; weights -128..127, x -127..127."""
    return _call(builder, "mp.dot4_signed", _I, total, weights, x)


@_operation(types.int32)
def signed_zero(builder: Any) -> Any:
    """What this instruction set adds to signed weights in `dot4_signed`: 128 or 0."""
    return _call(builder, "mp.signed_zero", I32)


def table_of(*values: int) -> Any:
    """The operation values[index] on each byte, index 0..15; values are 16 int8."""

    @_operation(bytes64, bytes64)
    def lookup(builder: Any, index: Any) -> Any:
        return _call(builder, "mp.lookup", _B, index, ir.Constant(ir.VectorType(I8, 16), list(values)))

    return lookup


@_operation(types.void, types.int64, types.int64, types.int64)
def transpose4(builder: Any, source: Any, stride: Any, out: Any) -> None:
    """Four rows of four dwords, `stride` bytes apart, to four columns, 64 bytes apart."""
    four = ir.VectorType(I32, 4)

    def shuffle(a: Any, b: Any, *lanes: int) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(four, list(lanes)))

    rows = [_load(builder, builder.add(source, builder.mul(stride, I64(row))), four) for row in range(4)]
    low = [shuffle(rows[i], rows[i + 1], 0, 4, 1, 5) for i in (0, 2)]
    high = [shuffle(rows[i], rows[i + 1], 2, 6, 3, 7) for i in (0, 2)]
    for column, (a, b) in enumerate((low, low, high, high)):
        lanes = (2, 3, 6, 7) if column % 2 else (0, 1, 4, 5)
        _store(builder, builder.add(out, I64(64 * column)), shuffle(a, b, *lanes))


# --- threads -------------------------------------------------------------------------------------------------------


@_operation(types.int64, types.int64, types.int64)
def fetch_add(builder: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, atomically; what it was before."""
    return builder.atomic_rmw("add", _at(builder, address, I64), value, "seq_cst")


@_operation(types.int64, types.int64)
def get_shared(builder: Any, address: Any) -> Any:
    """The int64 at an address, which other threads may change; what they wrote before it is visible after."""
    return builder.load_atomic(_at(builder, address, I64), "seq_cst", 8)


@_operation(types.void)
def pause(builder: Any) -> None:
    """Tell the core that this is a spin loop."""
    _call(builder, "mp.pause", ir.VoidType())


@_operation(types.void, types.int64)
def call_address(builder: Any, address: Any) -> None:
    """Call the function `void f(void)` at an address."""
    builder.call(_at(builder, address, ir.FunctionType(ir.VoidType(), [])), [])


@_operation(types.void, types.int64, types.int64, types.int64, types.int64)
def call_kernel(builder: Any, address: Any, arguments: Any, thread: Any, threads: Any) -> None:
    """Call the kernel at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    builder.call(_at(builder, address, kind), [arguments, thread, threads])


# --- several tokens at once ----------------------------------------------------------------------------------------


class Tokens:
    """Operations on tuples of `count` vectors, one per token. A token's number lies `stride` bytes after the last's."""

    def __init__(self, count: int) -> None:
        ints, floats = types.UniTuple(i32x16, count), types.UniTuple(f32x16, count)
        pair = types.UniTuple(ints, 2)

        def each(kind: ir.Type, emit: Callable[[int], Any]) -> Callable[[Any], Any]:
            def packed(builder: Any) -> Any:
                result = ir.Constant(ir.ArrayType(kind, count), ir.Undefined)
                for token in range(count):
                    result = builder.insert_value(result, emit(token), token)
                return result

            return packed

        def address(builder: Any, first: Any, stride: Any, token: int) -> Any:
            return builder.add(first, builder.mul(stride, I64(token)))

        def repeat(builder: Any, at: Any, kind: ir.Type, vector: ir.VectorType) -> Any:
            return splat(builder, _load(builder, at, kind), vector)

        def dot(name: str) -> Any:
            @_operation(pair, pair, bytes64, bytes64, types.int64, types.int64)
            def dot_pair(b: Any, totals: Any, left: Any, right: Any, first: Any, stride: Any) -> Any:
                result = totals
                for token in range(count):
                    x = b.bitcast(repeat(b, address(b, first, stride, token), I32, _I), _B)
                    for side, weights in enumerate((left, right)):
                        total = _call(b, name, _I, b.extract_value(totals, (side, token)), weights, x)
                        result = b.insert_value(result, total, (side, token))
                return result

            return dot_pair

        @_operation(floats)
        def zeros(b: Any) -> Any:
            return ir.Constant(ir.ArrayType(_F, count), [_zeros(_F)] * count)

        @_operation(ints, types.int64, types.int64, types.int32)
        def start(b: Any, first: Any, stride: Any, factor: Any) -> Any:
            def one(token: int) -> Any:
                return b.mul(repeat(b, address(b, first, stride, token), I32, _I), splat(b, factor, _I))

            return each(_I, one)(b)

        @_operation(floats, floats, ints, f32x16)
        def scale_ints(b: Any, sums: Any, totals: Any, scale: Any) -> Any:
            def one(token: int) -> Any:
                return _fma(b, b.sitofp(b.extract_value(totals, token), _F), scale, b.extract_value(sums, token))

            return each(_F, one)(b)

        @_operation(floats, floats, types.int64, types.int64, f32x16)
        def add_int_times(b: Any, sums: Any, first: Any, stride: Any, factor: Any) -> Any:
            def one(token: int) -> Any:
                x = b.sitofp(_load(b, address(b, first, stride, token), I32), F32)
                return _fma(b, splat(b, x, _F), factor, b.extract_value(sums, token))

            return each(_F, one)(b)

        @_operation(floats, floats, floats, types.int64, types.int64)
        def add_scaled(b: Any, sums: Any, parts: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                scale = repeat(b, address(b, first, stride, token), F32, _F)
                return _fma(b, b.extract_value(parts, token), scale, b.extract_value(sums, token))

            return each(_F, one)(b)

        @_operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_each(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = _load(b, address(b, first, stride, token), _F)
                return _fma(b, x, factor, b.extract_value(sums, token))

            return each(_F, one)(b)

        @_operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_one(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, _F)
                return _fma(b, x, factor, b.extract_value(sums, token))

            return each(_F, one)(b)

        @_operation(floats, floats, f32x16, types.int64, types.int64)
        def fma_seen(b: Any, sums: Any, factor: Any, first: Any, stride: Any) -> Any:
            def one(token: int) -> Any:
                x = repeat(b, address(b, first, stride, token), F32, _F)
                seen = b.select(b.fcmp_ordered("==", x, _zeros(_F)), _zeros(_F), factor)
                return _fma(b, x, seen, b.extract_value(sums, token))

            return each(_F, one)(b)

        @_operation(floats, floats, floats, f32x16)
        def add_times(b: Any, sums: Any, parts: Any, factor: Any) -> Any:
            return each(_F, lambda t: _fma(b, b.extract_value(parts, t), factor, b.extract_value(sums, t)))(b)

        @_operation(floats, types.int64, types.int64)
        def load_each(b: Any, first: Any, stride: Any) -> Any:
            return each(_F, lambda token: _load(b, address(b, first, stride, token), _F))(b)

        @_operation(types.void, types.int64, types.int64, floats)
        def store_each(b: Any, first: Any, stride: Any, values: Any) -> None:
            for token in range(count):
                _store(b, address(b, first, stride, token), b.extract_value(values, token))

        self.zeros = zeros
        """() -> floats: all 0."""
        self.start = start
        """(first, stride, factor) -> ints: each token's int32 times factor, in all lanes."""
        self.dot, self.dot_signed = dot("mp.dot4"), dot("mp.dot4_signed")
        """((ints, ints), left, right, first, stride) -> (ints, ints): + the codes of two tiles times each token's."""
        self.scale_ints = scale_ints
        """(floats, ints, scale) -> floats + ints * scale."""
        self.add_int_times = add_int_times
        """(floats, first, stride, factor) -> floats + each token's int32 * factor."""
        self.add_scaled = add_scaled
        """(floats, parts, first, stride) -> floats + parts * each token's float32."""
        self.fma_each = fma_each
        """(floats, factor, first, stride) -> floats + factor * each token's 16 float32."""
        self.fma_one = fma_one
        """(floats, factor, first, stride) -> floats + factor * each token's float32."""
        self.fma_seen = fma_seen
        """As fma_one, but what is multiplied with 0 may be infinite or NaN."""
        self.add_times = add_times
        """(floats, parts, factor) -> floats + parts * factor."""
        self.load_each, self.store_each = load_each, store_each
        """(first, stride) -> floats; (first, stride, floats)."""
