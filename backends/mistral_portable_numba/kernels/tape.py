"""The loop that runs a step: all threads execute the instructions of a tape in order."""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd.atomics import fetch_add, get_shared, pause
from mistral_portable_numba.compiler.simd.calls import call_address, call_kernel
from mistral_portable_numba.compiler.simd.get_put import get_i64
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.kernels.registry import AnyIsa, Factory

__all__ = ["KERNELS", "tape_kernel"]

_SPINS = 200  # then it yields the core: with more threads than cores, spinning delays the others


def tape_kernel() -> Callable[..., Any]:
    """The kernel that runs a tape.

    Arguments: number of instructions, their address, address of the barrier (two int64: arrived, generation), address
    of a function that yields the core. An instruction is three int64: the kernel's address, its arguments' address, and
    whether all threads must have finished it before the next one.
    """

    @inlined
    def barrier(at: Any, threads: Any, yield_core: Any) -> None:
        generation = get_shared(at + 8)
        if fetch_add(at, 1) == threads - 1:
            fetch_add(at, -threads)
            fetch_add(at + 8, 1)
            return
        spins = 0
        while get_shared(at + 8) == generation:
            pause()
            spins += 1
            if spins > _SPINS:
                call_address(yield_core)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        count, tape, shared, yield_core = get_i64(args), get_i64(args + 8), get_i64(args + 16), get_i64(args + 24)
        for _ in range(count):
            call_kernel(get_i64(tape), get_i64(tape + 8), thread, threads)
            if threads > 1 and get_i64(tape + 16) != 0:
                barrier(shared, threads, yield_core)
            tape += 24

    return kernel


KERNELS: dict[str, Factory] = {"tape": AnyIsa(tape_kernel)}
