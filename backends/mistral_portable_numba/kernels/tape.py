"""The loop that runs a step: the instructions of a tape one after the other, on all threads."""

from collections.abc import Callable
from typing import Any

from mistral_portable_numba.compiler.simd import (
    call_address,
    call_kernel,
    fetch_add,
    get_i64,
    get_shared,
    inlined,
    pause,
)

__all__ = ["tape_kernel"]

_SPINS = 200  # then other threads may have the core: with more of them than cores a spin is a waste


def tape_kernel() -> Callable[..., Any]:
    """Arguments: number of instructions, their address, address of the barrier (two int64: arrived, generation),
    address of a function that yields the core. An instruction is int64: kernel, its arguments, whether all threads
    must have finished before the next one."""

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
