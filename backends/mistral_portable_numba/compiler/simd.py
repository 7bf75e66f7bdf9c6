"""SIMD registers as Numba values: vectors of 16 lanes, and the operations that kernels are written in.

A vector is a Numba type whose data model is an LLVM vector, so a kernel is ordinary Python over local variables. LLVM
splits 16 lanes into the machine's registers: one with AVX-512, two with AVX2, four with NEON. Addresses are int64
everywhere (in Numba, int64 + uint64 is a float64). Loads and stores need no alignment.

Where LLVM has no portable operation, kernels call a function `mp.*`, which `isa.py` defines per instruction set.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
_Emit = Callable[..., Any]


_PARTS: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
inlined: Callable[..., Any] = numba.njit(**_PARTS)
"""Decorator of the functions that kernels are made of: they are inlined, and constant arguments stay constants."""


class Vector(types.Type):
    """A Numba type of `lanes` numbers of an LLVM type."""

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
"""64 bytes: four columns of 16 rows. Row r has the bytes 4r..4r+3, which are lane r of the same bits as i32x16."""

_F, _I, _B, _H = f32x16.llvm, i32x16.llvm, bytes64.llvm, ir.VectorType(I16, 16)


# --- making operations ---------------------------------------------------------------------------------------------


def operation(result: types.Type, *parameters: types.Type) -> Callable[[_Emit], Any]:
    """Make a Numba intrinsic from a function (builder, *values) -> value, or None if it has no result."""

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
for _symbol, _int in (
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.lshift, "shl"),
    (operator.rshift, "lshr"),
):
    _infix(_symbol, i32x16, getattr(ir.IRBuilder, _int))
    _infix(_symbol, bytes64, getattr(ir.IRBuilder, _int))
_infix(operator.truediv, f32x16, ir.IRBuilder.fdiv)


def splat(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """A vector with `value` in all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, vector.count), [0] * vector.count))


def zero_vector(vector: ir.VectorType) -> ir.Constant:
    """A vector of zeros."""
    return ir.Constant(vector, [0.0] * vector.count)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c on 16 float32, rounded once where the machine can."""
    return call(builder, "llvm.fmuladd.v16f32", _F, a, b, c)


def _at(builder: ir.IRBuilder, address: ir.Value, to: ir.Type) -> ir.Value:
    """The pointer to an address, by a call of mp.pointer.

    With a plain `inttoptr(a + b)`, LLVM, as it compiles Numba's own copy, would rewrite the IR into `inttoptr(a) + b`,
    which kernels linked from that IR would take for a null pointer.
    """
    return builder.bitcast(call(builder, "mp.pointer", I8.as_pointer(), address), to.as_pointer())


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """The value of a type at an address."""
    return builder.load(_at(builder, address, kind), align=1)


def store(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """Store a value at an address."""
    builder.store(value, _at(builder, address, value.type), align=1)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic or one of `isa.py`'s functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(get_or_insert_function(builder.module, kind, name), arguments)


# --- scalars in memory ---------------------------------------------------------------------------------------------


@operation(types.int64, types.int64)
def get_i64(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return load(builder, address, I64)


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
    half = splat(builder, load(builder, address, I16), _H)
    return builder.extract_element(call(builder, "mp.widen", _F, half), I32(0))


@operation(types.float32, types.int64)
def get_bf16(builder: Any, address: Any) -> Any:
    """The bfloat16 at an address: the upper half of a float32."""
    return builder.bitcast(builder.shl(builder.zext(load(builder, address, I16), I32), I32(16)), F32)


@operation(types.void, types.int64, types.int32)
def put_i32(builder: Any, address: Any, value: Any) -> None:
    """Store an int32."""
    store(builder, address, value)


@operation(types.void, types.int64, types.int64)
def put_i64(builder: Any, address: Any, value: Any) -> None:
    """Store an int64."""
    store(builder, address, value)


@operation(types.void, types.int64, types.float32)
def put_f32(builder: Any, address: Any, value: Any) -> None:
    """Store a float32."""
    store(builder, address, value)


@operation(types.void, types.int64, types.float32)
def put_f16(builder: Any, address: Any, value: Any) -> None:
    """Store a number as float16."""
    half = call(builder, "mp.narrow", _H, splat(builder, value, _F))
    store(builder, address, builder.extract_element(half, I32(0)))


@operation(types.void, types.int64, types.int64)
def put_i8(builder: Any, address: Any, value: Any) -> None:
    """Store the low byte of an integer."""
    store(builder, address, builder.trunc(value, I8))


@operation(types.void, types.int64, types.int64)
def put_i16(builder: Any, address: Any, value: Any) -> None:
    """Store the low 16 bits of an integer."""
    store(builder, address, builder.trunc(value, I16))


@operation(types.int64, types.int64)
def get_i16(builder: Any, address: Any) -> Any:
    """The int16 at an address."""
    return builder.sext(load(builder, address, I16), I64)


# --- vectors in memory ---------------------------------------------------------------------------------------------


@operation(f32x16, types.int64)
def load_f32(builder: Any, address: Any) -> Any:
    """16 consecutive float32."""
    return load(builder, address, _F)


@operation(f32x16, types.int64)
def load_f16(builder: Any, address: Any) -> Any:
    """16 consecutive float16."""
    return call(builder, "mp.widen", _F, load(builder, address, _H))


@operation(f32x16, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    """16 consecutive bfloat16."""
    wide = builder.zext(load(builder, address, _H), _I)
    return builder.bitcast(builder.shl(wide, ir.Constant(_I, [16] * 16)), _F)


@operation(f32x16, types.int64)
def load_i8(builder: Any, address: Any) -> Any:
    """16 consecutive int8, as float32."""
    return builder.sitofp(builder.sext(load(builder, address, ir.VectorType(I8, 16)), _I), _F)


@operation(i32x16, types.int64)
def load_i32(builder: Any, address: Any) -> Any:
    """16 consecutive int32."""
    return load(builder, address, _I)


@operation(bytes64, types.int64)
def load_bytes(builder: Any, address: Any) -> Any:
    """64 consecutive bytes."""
    return load(builder, address, _B)


@operation(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Prefetch the cache line at an address, which need not be valid."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [_at(builder, address, I8), I32(0), I32(2), I32(1)])


@operation(bytes64, types.int64)
def repeat4(builder: Any, address: Any) -> Any:
    """The four bytes at an address, 16 times: four columns of one token, to be multiplied with those of 16 rows."""
    return builder.bitcast(splat(builder, load(builder, address, I32), _I), _B)


@operation(f32x16, types.int64)
def repeat_f32(builder: Any, address: Any) -> Any:
    """The float32 at an address in all lanes."""
    return splat(builder, load(builder, address, F32), _F)


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
    store(builder, address, call(builder, "mp.narrow", _H, value))


@operation(types.void, types.int64, types.int64, i32x16)
def store_i8_apart(builder: Any, address: Any, stride: Any, value: Any) -> None:
    """Store the low bytes of 16 integers in groups of four, `stride` bytes apart."""
    fours = builder.bitcast(builder.trunc(value, ir.VectorType(I8, 16)), ir.VectorType(I32, 4))
    for index in range(4):
        place = builder.add(address, builder.mul(stride, I64(index)))
        store(builder, place, builder.extract_element(fours, I32(index)))


@operation(types.void, types.int64, bytes64)
def store_bytes(builder: Any, address: Any, value: Any) -> None:
    """Store 64 bytes."""
    store(builder, address, value)


# --- lanes ---------------------------------------------------------------------------------------------------------


@operation(f32x16, types.float32)
def all_f32(builder: Any, value: Any) -> Any:
    """A number in all lanes."""
    return splat(builder, value, _F)


@operation(i32x16, types.int32)
def all_i32(builder: Any, value: Any) -> Any:
    """An integer in all lanes."""
    return splat(builder, value, _I)


@operation(i32x16)
def lane_numbers(builder: Any) -> Any:
    """0, 1, .. 15."""
    return ir.Constant(_I, list(range(16)))


@operation(f32x16, i32x16)
def to_f32(builder: Any, value: Any) -> Any:
    """Integers as float32."""
    return builder.sitofp(value, _F)


@operation(i32x16, f32x16)
def nearest(builder: Any, value: Any) -> Any:
    """The nearest integers, ties to even, of numbers below 2^22: their sum with 1.5 * 2^23 has no fraction bits."""
    magic = 12582912.0
    shifted = builder.fadd(value, ir.Constant(_F, [magic] * 16))
    return builder.sub(builder.bitcast(shifted, _I), ir.Constant(_I, [0x4B400000] * 16))


@operation(f32x16, f32x16)
def rounded(builder: Any, value: Any) -> Any:
    """The nearest integers, ties to even, of numbers below 2^22, as float32."""
    magic = ir.Constant(_F, [12582912.0] * 16)
    return builder.fsub(builder.fadd(value, magic), magic)


@operation(types.int64, types.float32)
def nearest_i64(builder: Any, value: Any) -> Any:
    """The nearest integer, ties to even, of a number below 2^22."""
    shifted = builder.fadd(value, F32(12582912.0))
    return builder.sext(builder.sub(builder.bitcast(shifted, I32), I32(0x4B400000)), I64)


@operation(f32x16, i32x16)
def low_f16(builder: Any, value: Any) -> Any:
    """The float16 in the low half of each lane."""
    return call(builder, "mp.widen", _F, builder.trunc(value, _H))


@operation(f32x16, i32x16)
def high_f16(builder: Any, value: Any) -> Any:
    """The float16 in the high half of each lane."""
    high = builder.lshr(value, ir.Constant(_I, [16] * 16))
    return call(builder, "mp.widen", _F, builder.trunc(high, _H))


@operation(i32x16, f32x16)
def as_f16_bits(builder: Any, value: Any) -> Any:
    """Each lane rounded to float16, whose bits are the low half of an int32."""
    return builder.zext(call(builder, "mp.narrow", _H, value), _I)


@operation(bytes64, i32x16)
def as_bytes(builder: Any, value: Any) -> Any:
    """The same bits as bytes64."""
    return builder.bitcast(value, _B)


@operation(i32x16, i32x16, types.int32)
def signed_byte(builder: Any, value: Any, index: Any) -> Any:
    """Byte `index` of each lane, sign-extended."""
    left = builder.sub(I32(24), builder.mul(index, I32(8)))
    up = builder.shl(value, splat(builder, left, _I))
    return builder.ashr(up, ir.Constant(_I, [24] * 16))


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c; rounded once where the machine can."""
    return multiply_add(builder, a, b, c)


@operation(f32x16, f32x16, f32x16)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The larger of each lane; NaN if either is NaN."""
    return call(builder, "llvm.maximum.v16f32", _F, a, b)


@operation(f32x16, f32x16, types.float32, types.float32)
def keep_in(builder: Any, value: Any, low: Any, high: Any) -> Any:
    """The lanes clamped to low..high; NaN stays NaN."""
    low, high = splat(builder, low, _F), splat(builder, high, _F)
    value = builder.select(builder.fcmp_ordered("<", value, low), low, value)
    return builder.select(builder.fcmp_ordered(">", value, high), high, value)


@operation(f32x16, f32x16)
def absolute(builder: Any, value: Any) -> Any:
    """|x|"""
    return call(builder, "llvm.fabs.v16f32", _F, value)


@operation(f32x16, i32x16)
def power_of_two(builder: Any, value: Any) -> Any:
    """2^n of integers n in -126..127."""
    biased = builder.add(value, ir.Constant(_I, [127] * 16))
    return builder.bitcast(builder.shl(biased, ir.Constant(_I, [23] * 16)), _F)


@operation(types.float32, types.float32)
def square_root(builder: Any, value: Any) -> Any:
    """The square root."""
    return call(builder, "llvm.sqrt.f32", F32, value)


@operation(types.float32, types.int64)
def get_f64_as_f32(builder: Any, address: Any) -> Any:
    """The float64 at an address, rounded."""
    return builder.fptrunc(load(builder, address, ir.DoubleType()), F32)


@operation(types.float32, f32x16)
def first_lane(builder: Any, value: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(value, I32(0))


@operation(types.float32, f32x16)
def sum_lanes(builder: Any, value: Any) -> Any:
    """The sum of the 16 lanes, in a fixed tree order."""
    for width in (8, 4, 2, 1):
        order = [*range(width, 2 * width), *range(width)]
        mask = ir.Constant(ir.VectorType(I32, 16), [*order, *[0] * (16 - len(order))])
        value = builder.fadd(value, builder.shuffle_vector(value, value, mask))
    return builder.extract_element(value, I32(0))


@operation(types.float32, f32x16)
def max_lanes(builder: Any, value: Any) -> Any:
    """The largest of the 16 lanes."""
    for width in (8, 4, 2, 1):
        order = [*range(width, 2 * width), *range(width)]
        mask = ir.Constant(ir.VectorType(I32, 16), [*order, *[0] * (16 - len(order))])
        other = builder.shuffle_vector(value, value, mask)
        value = call(builder, "llvm.maximum.v16f32", _F, value, other)
    return builder.extract_element(value, I32(0))


@operation(types.int32, i32x16)
def sum_i32(builder: Any, value: Any) -> Any:
    """The sum of the 16 lanes."""
    return call(builder, "llvm.vector.reduce.add.v16i32", I32, value)


@operation(f32x16, f32x16, i32x16, types.int32, types.int32, types.float32)
def keep_between(builder: Any, value: Any, key: Any, low: Any, high: Any, other: Any) -> Any:
    """The lanes whose key is in low..high; the rest are `other`."""
    inside = builder.and_(
        builder.icmp_signed(">=", key, splat(builder, low, _I)),
        builder.icmp_signed("<=", key, splat(builder, high, _I)),
    )
    return builder.select(inside, value, splat(builder, other, _F))


@operation(f32x16, f32x16, f32x16, f32x16, f32x16)
def where_less(builder: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """yes where a < b, else no; no where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), yes, no)


# --- bytes times bytes ---------------------------------------------------------------------------------------------


@operation(i32x16, i32x16, bytes64, bytes64)
def dot4(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """total + the four products of each lane; weights 0..127, x -127..127."""
    return call(builder, "mp.dot4", _I, total, weights, x)


@operation(bytes64, bytes64)
def as_signed(builder: Any, weights: Any) -> Any:
    """Weights -128..127 in the form that `dot4_signed` takes: with `signed_zero` added."""
    return call(builder, "mp.signed", _B, weights)


@operation(i32x16, i32x16, bytes64, bytes64)
def dot4_signed(builder: Any, total: Any, weights: Any, x: Any) -> Any:
    """total + the four products of each lane; weights from `as_signed`, x -127..127."""
    return call(builder, "mp.dot4_signed", _I, total, weights, x)


@operation(types.int32)
def signed_zero(builder: Any) -> Any:
    """The number that `as_signed` adds to weights on this instruction set: 128 or 0."""
    return call(builder, "mp.signed_zero", I32)


def table_of(*values: int) -> Any:
    """The operation values[index] on each byte, index 0..15; values are 16 int8."""

    @operation(bytes64, bytes64)
    def lookup(builder: Any, index: Any) -> Any:
        return call(builder, "mp.lookup", _B, index, ir.Constant(ir.VectorType(I8, 16), list(values)))

    return lookup


@operation(types.void, types.int64, types.int64, types.int64)
def transpose4(builder: Any, source: Any, stride: Any, out: Any) -> None:
    """Transpose four rows of four dwords, `stride` bytes apart, into four columns, 64 bytes apart."""
    four = ir.VectorType(I32, 4)

    def shuffle(a: Any, b: Any, *lanes: int) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(four, list(lanes)))

    rows = [load(builder, builder.add(source, builder.mul(stride, I64(row))), four) for row in range(4)]
    low = [shuffle(rows[i], rows[i + 1], 0, 4, 1, 5) for i in (0, 2)]
    high = [shuffle(rows[i], rows[i + 1], 2, 6, 3, 7) for i in (0, 2)]
    for column, (a, b) in enumerate((low, low, high, high)):
        lanes = (2, 3, 6, 7) if column % 2 else (0, 1, 4, 5)
        store(builder, builder.add(out, I64(64 * column)), shuffle(a, b, *lanes))


# --- threads -------------------------------------------------------------------------------------------------------


@operation(types.int64, types.int64, types.int64)
def fetch_add(builder: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, atomically; returns its value before."""
    return builder.atomic_rmw("add", _at(builder, address, I64), value, "seq_cst")


@operation(types.int64, types.int64)
def get_shared(builder: Any, address: Any) -> Any:
    """The int64 at an address that other threads may change; their earlier writes are visible afterwards."""
    return builder.load_atomic(_at(builder, address, I64), "seq_cst", 8)


@operation(types.void)
def pause(builder: Any) -> None:
    """Hint to the core that this is a spin loop."""
    call(builder, "mp.pause", ir.VoidType())


@operation(types.void, types.int64)
def call_address(builder: Any, address: Any) -> None:
    """Call the function `void f(void)` at an address."""
    builder.call(_at(builder, address, ir.FunctionType(ir.VoidType(), [])), [])


@operation(types.void, types.int64, types.int64, types.int64, types.int64)
def call_kernel(builder: Any, address: Any, arguments: Any, thread: Any, threads: Any) -> None:
    """Call the kernel at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    builder.call(_at(builder, address, kind), [arguments, thread, threads])
