"""Packing: rows of ggml blocks in a file's order become tiles of 16 rows (see `layouts.py`). Bytes are only moved."""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.get_put import get_i16, get_i32, get_i64, put_i16, put_i32
from mistral_portable_numba.compiler.simd.load_store import transpose4
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["KERNELS", "pack_kernel"]

_CLAIM = 2**22
"""Bytes of tiles that a thread claims, if there are enough for all: most huge pages then belong to one thread. Where
two write to a new one at the same time, the system makes it twice."""


def pack_kernel() -> Callable[..., Any]:
    """The kernel that packs a matrix; rows beyond the last become zeros.

    Arguments: counter, pairs of tiles, rows, blocks per row, source, the source's row for each row (int64), bytes of a
    block, offset of the float16 outside its dwords or -1, offset of its dwords, their number, destination.
    """

    @inlined
    def pack_block(
        source: Any, row_bytes: Any, order: Any, rows: Any, half: Any, payload: Any, dwords: Any, tile: Any
    ) -> None:
        for row in range(0, 16, 4):
            done = 0
            if row + 4 <= rows:
                first, second = get_i64(order + 8 * row), get_i64(order + 8 * row + 8)
                third, fourth = get_i64(order + 8 * row + 16), get_i64(order + 8 * row + 24)
                step = second - first
                if third - second == step and fourth - third == step:
                    at = source + first * row_bytes + payload
                    while done + 4 <= dwords:
                        transpose4(at + 4 * done, step * row_bytes, tile + 64 * done + 4 * row, 64)
                        done += 4
            for r in range(row, row + 4):
                at = source + (get_i64(order + 8 * r) * row_bytes if r < rows else 0)
                for i in range(done, dwords):
                    put_i32(tile + 64 * i + 4 * r, get_i32(at + payload + 4 * i) if r < rows else 0)
                if half >= 0:
                    put_i16(tile + 64 * dwords + 2 * r, get_i16(at + half) if r < rows else 0)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, pairs, rows, blocks = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        source, order, block_bytes, half = (
            get_i64(args + 32),
            get_i64(args + 40),
            get_i64(args + 48),
            get_i64(args + 56),
        )
        payload, dwords, out = get_i64(args + 64), get_i64(args + 72), get_i64(args + 80)
        row_bytes = blocks * block_bytes
        claim = max(1, min(_CLAIM // (32 * row_bytes), pairs // threads))
        while True:
            begin = fetch_add(counter, claim)
            if begin >= pairs:
                break
            for tile in range(2 * begin, 2 * min(begin + claim, pairs)):
                at = out + (tile // 2 * 2 * blocks + tile % 2) * 16 * block_bytes
                for block in range(blocks):
                    pack_block(
                        source + block * block_bytes,
                        row_bytes,
                        order + 128 * tile,
                        rows - 16 * tile,
                        half,
                        payload,
                        dwords,
                        at,
                    )
                    at += 32 * block_bytes

    return kernel


KERNELS: dict[str, Factory] = {"pack": AnyIsa(pack_kernel)}
