"""Probes of the machine's limits: loops that only read memory, or only multiply and add.

Threads claim pieces, so that a delayed thread does not make the others wait. Sums go to a sink of 64 bytes per thread,
as LLVM would otherwise remove the work.
"""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.byte_dots import dot4
from mistral_portable_numba.compiler.simd.get_put import get_i64
from mistral_portable_numba.compiler.simd.lanes import all_f32, all_i32, fma
from mistral_portable_numba.compiler.simd.load_store import (
    load_bytes,
    load_f32,
    load_i32,
    repeat4,
    repeat_f32,
    store_f32,
    store_i32,
)
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tiles import begin_tiles, byte_product, end_tiles
from mistral_portable_numba.kernels.byte_tiles import load4, load5, load6, load7, write_sizes
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["KERNELS", "dot4_probe", "fma_probe", "read_probe"]

_PIECE = 2**20  # bytes
_ROUNDS = 2**15  # in a piece


def read_probe() -> Callable[..., Any]:
    """The kernel that reads memory. Arguments: counter, address, bytes (whole MiB), sink."""

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, data, size, sink = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        a, b, c, d = all_i32(0), all_i32(0), all_i32(0), all_i32(0)
        while True:
            first = fetch_add(counter, _PIECE)
            if first >= size:
                break
            for at in range(data + first, data + first + _PIECE, 256):
                a, b = a + load_i32(at), b + load_i32(at + 64)
                c, d = c + load_i32(at + 128), d + load_i32(at + 192)
        store_i32(sink + 64 * thread, (a + b) + (c + d))

    return kernel


def dot4_probe(isa: Isa) -> Callable[..., Any]:
    """The kernel that multiplies bytes and adds.

    Arguments: counter, pieces, the address of 1 KiB to multiply, sink, and the address of an int64 to which each piece
    adds its number of multiplications and additions.
    """
    if isa.tiles:
        return _tiles_probe()

    @inlined
    def zero() -> Any:
        return all_i32(0)

    @inlined
    def add(total: Any, weights: Any, x: Any) -> Any:
        return dot4(total, load_bytes(weights), repeat4(x))

    return _arithmetic(isa.tokens, 128, zero, add, store_i32)


def _tiles_probe() -> Callable[..., Any]:
    """`dot4_probe` by tiles, into four tiles of sums."""
    add0, add1 = byte_product(0, 4, 6, signed=True), byte_product(1, 4, 7, signed=True)
    add2, add3 = byte_product(2, 5, 6, signed=True), byte_product(3, 5, 7, signed=True)
    rounds = _ROUNDS // 16

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, pieces, data, sink = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        own = sink + 64 * thread
        write_sizes(own, 16, 64)
        begin_tiles(own)
        load4(data, 64)
        load5(data, 64)
        load6(data, 64)
        load7(data, 64)
        while fetch_add(counter, 1) < pieces:
            for _ in range(rounds):
                add0()
                add1()
                add2()
                add3()
            fetch_add(get_i64(args + 32), rounds * 4 * 2 * 16 * 16 * 64)
        end_tiles()

    return kernel


def fma_probe(isa: Isa) -> Callable[..., Any]:
    """The kernel that multiplies float32 and adds; arguments like those of `dot4_probe`."""

    @inlined
    def zero() -> Any:
        return all_f32(0.0)

    @inlined
    def add(total: Any, weights: Any, x: Any) -> Any:
        return fma(load_f32(weights), repeat_f32(x), total)

    return _arithmetic(isa.tokens, 32, zero, add, store_f32)


def _arithmetic(tokens: int, operations: int, zero: Any, add: Any, store: Any) -> Callable[..., Any]:
    """The kernel with four or twelve independent sums, limited by the registers, so that none waits for another."""
    many = tokens > 4
    done = _ROUNDS * operations * (12 if many else 4)

    @inlined
    def four(sums: Any, weights: Any, x: Any) -> Any:
        a, b, c, d = sums
        return add(a, weights, x), add(b, weights, x + 4), add(c, weights, x + 8), add(d, weights, x + 12)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, pieces, data, sink = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        a = b = c = (zero(), zero(), zero(), zero())
        while fetch_add(counter, 1) < pieces:
            for i in range(_ROUNDS):
                at = data + 64 * (i & 7)  # weights change, or LLVM would multiply only once
                a = four(a, at, data)
                if many:
                    b, c = four(b, at + 64, data), four(c, at + 128, data)
            fetch_add(get_i64(args + 32), done)
        total = zero()
        for some in (a, b, c):
            total = total + some[0] + some[1] + some[2] + some[3]
        store(sink + 64 * thread, total)

    return kernel


KERNELS: dict[str, Factory] = {"probe_read": AnyIsa(read_probe), "probe_dot4": dot4_probe, "probe_fma": fma_probe}
