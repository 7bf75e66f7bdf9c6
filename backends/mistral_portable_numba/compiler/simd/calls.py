"""Calls of machine code by its address."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import I64, pointer
from mistral_portable_numba.compiler.simd.operation import operation

__all__ = ["call_address", "call_kernel"]


@operation(types.void, types.int64)
def call_address(builder: Any, address: Any) -> None:
    """Call the function `void f(void)` at an address."""
    builder.call(pointer(builder, address, ir.FunctionType(ir.VoidType(), [])), [])


@operation(types.void, types.int64, types.int64, types.int64, types.int64)
def call_kernel(builder: Any, address: Any, arguments: Any, thread: Any, threads: Any) -> None:
    """Call the kernel at an address."""
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64])
    builder.call(pointer(builder, address, kind), [arguments, thread, threads])
