"""Decoding steps recorded as CUDA graphs and replayed, so that the host does not launch each kernel."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured", "Record", "cuda_graph"]

Outputs = dict[str, Any]
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], object]]]
"""Runs and records a function; returns its outputs, and a function that computes them again in place."""

_KEPT = 32  # recorded steps; the least recently used one is dropped


class Captured:
    """Recorded steps by key; steps of one key differ only in one tensor of words.

    A step is recorded when its key comes for the second time: libraries initialize themselves in the first run, and
    many keys come only once.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._steps: OrderedDict[Hashable, tuple[Tensor, Outputs, Callable[[], object]] | None] = OrderedDict()

    def run(self, key: Hashable, words: Tensor, function: Callable[[Tensor], Outputs]) -> Outputs:
        """Return `function(words)`, whose work on the host must depend on the key alone. The next step of the same key
        overwrites the outputs."""
        found = self._steps.get(key)
        if found is not None:
            held, outputs, replay = found
            held.copy_(words)
            replay()
        elif key in self._steps:
            held = words.clone()
            outputs, replay = self._record(lambda: function(held))
            self._steps[key] = held, outputs, replay
        else:
            outputs = function(words)
            self._steps[key] = None
        self._steps.move_to_end(key)
        if len(self._steps) > _KEPT:
            self._steps.popitem(last=False)
        return outputs

    def clear(self) -> None:
        """Drop all recordings: the addresses in them are no longer valid."""
        self._steps.clear()


def cuda_graph(device: torch.device) -> Record:
    """Make a recorder into CUDA graphs. They share one memory pool, because only one step runs at a time.

    A graph takes the pool of the graph before it, or a new pool if that graph has been freed: the allocator asserts
    that a pool is new or belongs to a live graph.
    """
    latest: weakref.ref[torch.cuda.CUDAGraph] | None = None

    def record(function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        nonlocal latest
        before, graph = latest() if latest is not None else None, torch.cuda.CUDAGraph()
        pool = before.pool() if before is not None else None
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = function()
        latest = weakref.ref(graph)
        graph.replay()  # recording computes nothing
        return outputs, graph.replay

    return record
