"""Streams for programs. Those of programs that have ended are used again: MLX ends no stream, and each has a thread."""

import weakref
from collections.abc import Callable

import mlx.core as mx

__all__ = ["take_stream"]

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
