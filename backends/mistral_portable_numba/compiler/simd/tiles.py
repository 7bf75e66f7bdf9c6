"""AMX's tiles as operations: see `compiler.amx`, whose functions they call, and the numbers of its tiles."""

from typing import Any

from llvmlite import ir
from numba.core import types

from mistral_portable_numba.compiler.simd.emit import call
from mistral_portable_numba.compiler.simd.operation import operation

__all__ = ["begin_tiles", "bf16_product", "byte_product", "end_tiles", "load_tile", "store_tile", "zero_tile"]

_VOID = ir.VoidType()


@operation(types.void, types.int64)
def begin_tiles(builder: Any, sizes: Any) -> None:
    """Give the thread's tiles their sizes, from an address (`layouts.tile_sizes`); all become 0."""
    call(builder, "mp.tiles", _VOID, sizes)


@operation(types.void)
def end_tiles(builder: Any) -> None:
    """End the use of tiles, before the kernel returns."""
    call(builder, "mp.tiles_end", _VOID)


def zero_tile(tile: int) -> Any:
    """The operation () -> None that sets a tile to 0."""

    @operation(types.void)
    def zero(builder: Any) -> None:
        call(builder, f"mp.tile_zero.{tile}", _VOID)

    return zero


def load_tile(tile: int) -> Any:
    """The operation (address, stride) -> None that reads a tile's rows, `stride` bytes apart."""

    @operation(types.void, types.int64, types.int64)
    def load(builder: Any, address: Any, stride: Any) -> None:
        call(builder, f"mp.tile_load.{tile}", _VOID, address, stride)

    return load


def store_tile(tile: int) -> Any:
    """The operation (address, stride) -> None that writes a tile's rows."""

    @operation(types.void, types.int64, types.int64)
    def store(builder: Any, address: Any, stride: Any) -> None:
        call(builder, f"mp.tile_store.{tile}", _VOID, address, stride)

    return store


def bf16_product(total: int, left: int, right: int) -> Any:
    """The operation () -> None that adds left @ right to a tile of sums, in bfloat16."""
    return _product("bf16", total, left, right)


def byte_product(total: int, left: int, right: int, *, signed: bool) -> Any:
    """The operation () -> None that adds left @ right to a tile of sums, in bytes. signed: whether right is."""
    return _product("s8s8" if signed else "s8u8", total, left, right)


def _product(kind: str, total: int, left: int, right: int) -> Any:

    @operation(types.void)
    def multiply(builder: Any) -> None:
        call(builder, f"mp.tile_{kind}.{total}.{left}.{right}", _VOID)

    return multiply
