"""deep_stack: calls a function with more stack than threads have."""

import threading
from collections.abc import Callable
from typing import TypeVar

from mistral_portable.forks import make_locks

__all__ = ["deep_stack"]

Result = TypeVar("Result")

_BYTES = 256 << 20  # of address space: memory is taken for what is used


class _Turn:
    """A lock: the size of stacks is one setting of the process."""

    def __init__(self) -> None:
        make_locks(self, _Turn._make_locks)

    def _make_locks(self) -> None:
        self.lock = threading.Lock()


_turn = _Turn()


def deep_stack(action: Callable[[], Result]) -> Result:
    """Call a function in a thread of its own, with 256 MiB of stack, and return its result or raise its error.

    llguidance compiles by recursion, a few kB of stack for each rule that another one refers to: a chain of 3,000 short
    rules, 30 kB of text, would end a process with the usual 8 MiB of stack.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="mistral_portable.grammar")
    with _turn.lock:
        usual = threading.stack_size(_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
