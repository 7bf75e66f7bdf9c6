"""Packing: rows of ggml blocks in a file's order become tiles of 16 rows (see `layouts.py`). Bytes are only moved."""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_i16, get_i32, get_i64, put_i16, put_i32
from mistral_portable_numba.compiler.simd.load_store import transpose4
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["KERNELS", "pack_kernel"]


def pack_kernel() -> Callable[..., Any]:
    """The kernel that packs a matrix; rows beyond the last become zeros.

    Arguments: counter, pairs of tiles, rows, blocks per row, source, bytes of a block, offset of the float16 outside
    its dwords or -1, offset of its dwords, their number, destination.
    """

    @inlined
    def pack_block(source: Any, row_bytes: Any, rows: Any, half: Any, payload: Any, dwords: Any, tile: Any) -> None:
        for row in range(0, 16, 4):
            done = 0
            if row + 4 <= rows:
                while done + 4 <= dwords:
                    at = source + row * row_bytes + payload + 4 * done
                    transpose4(at, row_bytes, tile + 64 * done + 4 * row, 64)
                    done += 4
            for r in range(row, row + 4):
                at = source + r * row_bytes
                for i in range(done, dwords):
                    put_i32(tile + 64 * i + 4 * r, get_i32(at + payload + 4 * i) if r < rows else 0)
                if half >= 0:
                    put_i16(tile + 64 * dwords + 2 * r, get_i16(at + half) if r < rows else 0)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, pairs, rows, blocks = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        source, block_bytes, half = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48)
        payload, dwords, out = get_i64(args + 56), get_i64(args + 64), get_i64(args + 72)
        row_bytes = blocks * block_bytes
        while True:
            pair = fetch_add(counter, 1)
            if pair >= pairs:
                break
            for tile in range(2 * pair, 2 * pair + 2):
                at = out + (2 * pair * blocks + tile % 2) * 16 * block_bytes
                for block in range(blocks):
                    place = source + 16 * tile * row_bytes + block * block_bytes
                    pack_block(place, row_bytes, rows - 16 * tile, half, payload, dwords, at)
                    at += 32 * block_bytes

    return kernel


KERNELS: dict[str, Factory] = {"pack": AnyIsa(pack_kernel)}
