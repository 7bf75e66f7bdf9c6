"""Streams for programs, and the lock under which programs use MLX.

Streams of programs that have ended are used again: MLX ends none, and each has a thread, on Metal a command queue.
"""

import threading
import weakref
from collections.abc import Callable

import mlx.core as mx

__all__ = ["TURN", "take_stream"]

TURN = threading.RLock()
"""Held by one program at a time while it reads weights, records a step or waits for one: MLX's evaluation may race
where two threads begin one. Reentrant, as the collector may close a program in a thread that holds it."""

_free: list[mx.Stream] = []


def take_stream(program: object) -> tuple[mx.Stream, Callable[[], object]]:
    """Take a stream of MLX's default device for `program`, and a function that gives it back.

    It is given back by itself when `program` is collected. Any thread may use this kind of stream; other kinds belong
    to the thread that made them.
    """
    try:
        stream = _free.pop()
    except IndexError:
        stream = mx.new_thread_unsafe_stream(mx.default_device())
    return stream, weakref.finalize(program, _free.append, stream)
