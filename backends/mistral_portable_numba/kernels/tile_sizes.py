"""The sizes of AMX's tiles for products of bytes: up to 16 tokens times 16 rows of weights."""

from typing import Any

from mistral_portable_numba.compiler.simd.get_put import put_i8, put_i16, put_i64
from mistral_portable_numba.compiler.simd.operation import inlined

__all__ = ["write_sizes"]


@inlined
def write_sizes(at: Any, tokens: Any, columns: Any) -> None:
    """Write 64 bytes for `begin_tiles` (Intel's manual, LDTILECFG), for 32 or 64 columns at a time.

    Tiles 0 to 3 are sums, int32 [tokens, 16]; 4 and 5 inputs, bytes [tokens, columns]; 6 and 7 weights, dwords
    [columns / 4, 16].
    """
    for place in range(0, 64, 8):
        put_i64(at + place, 0)
    put_i8(at, 1)
    for tile in range(8):
        put_i16(at + 16 + 2 * tile, columns if tile == 4 or tile == 5 else 64)
        put_i8(at + 48 + tile, columns // 4 if tile > 5 else tokens)
