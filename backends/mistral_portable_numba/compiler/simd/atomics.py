"""Integers that several threads change."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import I64, call, pointer
from mistral_portable_numba.compiler.simd.operation import operation

__all__ = ["fetch_add", "get_shared", "pause"]


@operation(types.int64, types.int64, types.int64)
def fetch_add(builder: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address, atomically; returns its value before."""
    return builder.atomic_rmw("add", pointer(builder, address, I64), value, "seq_cst")


@operation(types.int64, types.int64)
def get_shared(builder: Any, address: Any) -> Any:
    """The int64 at an address that other threads may change; their earlier writes are visible afterwards."""
    return builder.load_atomic(pointer(builder, address, I64), "seq_cst", 8)


@operation(types.void)
def pause(builder: Any) -> None:
    """Hint to the core that this is a spin loop."""
    call(builder, "mp.pause", ir.VoidType())
