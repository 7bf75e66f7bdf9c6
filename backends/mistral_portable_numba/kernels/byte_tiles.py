"""Products of bytes in AMX's tiles: their sizes, operations, and what is done between them.

Tiles 0 to 3 are sums, int32 [tokens, 16]; 4 and 5 inputs, bytes [tokens, columns]; 6 and 7 weights, dwords
[columns / 4, 16]. There are up to 16 tokens, and 32 or 64 columns at a time.
"""

from typing import Any

from mistral_portable_numba.compiler.simd.get_put import put_i8, put_i16, put_i64
from mistral_portable_numba.compiler.simd.load_store import prefetch
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tiles import load_tile, store_tile, zero_tile

__all__ = ["load4", "load5", "load6", "load7", "part_of_prefetch", "store_sums", "write_sizes", "zero_sums"]

zero0, zero1, zero2, zero3 = (zero_tile(tile) for tile in range(4))
load4, load5, load6, load7 = (load_tile(tile) for tile in range(4, 8))
store0, store1, store2, store3 = (store_tile(tile) for tile in range(4))


@inlined
def write_sizes(at: Any, tokens: Any, columns: Any) -> None:
    """Write 64 bytes for `begin_tiles` (Intel's manual, LDTILECFG)."""
    for place in range(0, 64, 8):
        put_i64(at + place, 0)
    put_i8(at, 1)
    for tile in range(8):
        put_i16(at + 16 + 2 * tile, columns if tile == 4 or tile == 5 else 64)
        put_i8(at + 48 + tile, columns // 4 if tile > 5 else tokens)


@inlined
def zero_sums() -> None:
    """Set the tiles of sums to 0."""
    zero0()
    zero1()
    zero2()
    zero3()


@inlined
def store_sums(at: Any) -> None:
    """Write the tiles of sums, 1024 bytes apart."""
    store0(at, 64)
    store1(at + 1024, 64)
    store2(at + 2048, 64)
    store3(at + 3072, 64)


def part_of_prefetch(size: int, parts: int) -> Any:
    """The function (due, part) that prefetches one of the parts of `size` bytes from `due` on, if that is not 0.

    A thread that reads weights, then multiplies for as long, would use half of the memory's bandwidth.
    """
    lines = -(-size // 64)

    @inlined
    def fetch(due: Any, part: Any) -> None:
        if due != 0:
            for line in range(part, lines, parts):
                prefetch(due + 64 * line)

    return fetch
