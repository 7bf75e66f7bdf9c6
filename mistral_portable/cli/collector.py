"""The collector of reference cycles, in a process that starts, works and ends."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["end_quickly", "resting"]


@contextmanager
def resting() -> Iterator[None]:
    """Let the collector rest while modules are imported and a model is loaded: what they make is no garbage, and it
    would look at all of it many times (0.1 s of 0.8 s)."""
    worked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if worked:
            gc.enable()


def end_quickly() -> None:
    """Let the interpreter, when it ends, not search all objects for cycles, several times over (0.15 s)."""
    atexit.register(gc.freeze)
