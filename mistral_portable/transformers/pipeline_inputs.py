"""Inputs of pipelines: one, a list of them, or an iterator, whose results then come one by one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from mistral_portable.errors import InputError

__all__ = ["is_one", "mapped"]

Run = Callable[[list[Any]], list[Any]]


def is_one(given: Any) -> bool:
    """Whether this is one prompt: a text, or a list of messages."""
    messages = isinstance(given, Sequence) and len(given) > 0 and all(isinstance(item, Mapping) for item in given)
    return isinstance(given, str) or messages


def mapped(inputs: Any, run: Run, batch_size: int | None, one: Callable[[Any], bool], wanted: str) -> Any:
    """The result of one input, a list of results, or an iterator over them.

    run: makes the results of at most batch_size inputs (None: 1). one: whether this is one input. wanted: what an input
    is, for the error. Raises InputError for what is no input.
    """
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size={batch_size!r:.40} must be an integer from 1 on")
    if one(inputs):
        return run([inputs])[0]
    if isinstance(inputs, Iterator):
        return _in_batches(inputs, run, batch_size or 1, one, wanted)
    if not isinstance(inputs, Sequence) or isinstance(inputs, str) or not inputs or not all(map(one, inputs)):
        raise InputError(f"{inputs!r:.60}: pass {wanted}, a list of either, or an iterator over them")
    return [*_in_batches(iter(inputs), run, batch_size or 1, one, wanted)]


def _in_batches(inputs: Iterator[Any], run: Run, size: int, one: Callable[[Any], bool], wanted: str) -> Iterator[Any]:
    while batch := [*islice(inputs, size)]:
        for given in batch:
            if not one(given):
                raise InputError(f"{given!r:.60}: pass {wanted}")
        yield from run(batch)
