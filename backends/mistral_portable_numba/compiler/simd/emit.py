"""LLVM IR that operations emit: the types of values, memory at an address, vectors of one number, calls."""

from llvmlite import ir
from numba.core.cgutils import get_or_insert_function

__all__ = [
    "BYTES64",
    "F32",
    "F32X16",
    "I8",
    "I16",
    "I16X16",
    "I32",
    "I32X16",
    "I64",
    "call",
    "load",
    "multiply_add",
    "pointer",
    "splat",
    "store",
    "zero_vector",
]

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
F32X16, I32X16, I16X16 = (ir.VectorType(element, 16) for element in (F32, I32, I16))
BYTES64 = ir.VectorType(I8, 64)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Call an LLVM intrinsic or one of `isa.py`'s functions."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(get_or_insert_function(builder.module, kind, name), arguments)


def pointer(builder: ir.IRBuilder, address: ir.Value, to: ir.Type) -> ir.Value:
    """The pointer to an address, by a call of mp.pointer.

    With a plain `inttoptr(a + b)`, LLVM, as it compiles Numba's own copy, would rewrite the IR into `inttoptr(a) + b`,
    which kernels linked from that IR would take for a null pointer.
    """
    return builder.bitcast(call(builder, "mp.pointer", I8.as_pointer(), address), to.as_pointer())


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """The value of a type at an address."""
    return builder.load(pointer(builder, address, kind), align=1)


def store(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """Store a value at an address."""
    builder.store(value, pointer(builder, address, value.type), align=1)


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
    return call(builder, "llvm.fmuladd.v16f32", F32X16, a, b, c)
