"""Decoding steps recorded once and replayed: as CUDA graphs, whose kernels start without the host."""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured", "Record", "cuda_graph"]

Outputs = dict[str, Any]
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], object]]]
"""Runs a function once and records it: its outputs, and what computes them again, in place."""

_KEPT = 32  # recorded steps; the one that was not used for longest goes


class Captured:
    """Steps of one key differ in one tensor of words only. They are recorded when their key comes for the second time.

    The first is run as it comes: libraries set themselves up in it, and many a key never comes again.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._steps: OrderedDict[Hashable, tuple[Tensor, Outputs, Callable[[], object]] | None] = OrderedDict()

    def run(self, key: Hashable, words: Tensor, function: Callable[[Tensor], Outputs]) -> Outputs:
        """`function(words)`; it may do nothing else on the host than on the key. The outputs are overwritten by the
        next step of the same key."""
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
        """Forget all: addresses that steps have recorded are no longer valid."""
        self._steps.clear()


def cuda_graph(device: torch.device) -> Record:
    """Record into CUDA graphs, which share memory, as steps take turns: each takes the pool of the one before it.

    If that graph is gone, it begins a new pool: the allocator asserts that a pool to record into has a graph or is new.
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
