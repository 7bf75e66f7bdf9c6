"""Decoding steps recorded as CUDA graphs and replayed, so that the host does not launch each kernel."""

import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Captured", "Outputs", "Record", "cuda_graph"]

Outputs = dict[str, Any]
Record = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], object]]]
"""Runs and records a function; returns its outputs, and a function that computes them again in place. Raises what the
function raises, or RuntimeError if the device cannot record it; nothing has been computed then."""

_KEPT = 32  # recorded steps; the least recently used one is dropped
_FAILURES = 3  # after so many recordings that failed, no more are tried


class Captured:
    """Recorded steps by key; steps of one key differ only in one tensor of words.

    A step is recorded when its key comes for the second time: libraries initialize themselves in the first run, and
    many keys come only once. A step whose recording fails is run without one, from then on; a warning says so.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._steps: OrderedDict[Hashable, tuple[Tensor, Outputs, Callable[[], object]] | None] = OrderedDict()
        self._refused: set[Hashable] = set()

    def run(self, key: Hashable, words: Tensor, function: Callable[[Tensor], Outputs]) -> Outputs:
        """Return `function(words)`, whose work on the host must depend on the key alone. The next step of the same key
        overwrites the outputs."""
        if key in self._refused or len(self._refused) >= _FAILURES:
            return function(words)
        found = self._steps.get(key)
        if found is not None:
            held, outputs, replay = found
            held.copy_(words)
            replay()
        elif key in self._steps:
            held = words.clone()
            try:
                outputs, replay = self._record(lambda: function(held))
            except Exception as error:  # whatever the libraries raise: if it is a fault of the step, it comes again
                self._refuse(key, error)
                return function(words)
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

    def _refuse(self, key: Hashable, error: Exception) -> None:
        self._refused.add(key)
        self._steps.pop(key, None)
        last = len(self._refused) == _FAILURES
        if last:
            self._steps.clear()  # frees their memory: short memory is the likely reason
        which = "no decoding step is recorded from now on" if last else "decoding steps of one shape are not recorded"
        first = (str(error) or type(error).__name__).splitlines()[0]
        warnings.warn(f"{which}, which makes them slower: the recording as a CUDA graph failed ({first})", stacklevel=4)


_ONE_CAPTURE = threading.Lock()
"""torch allows one capture at a time in a process."""


def cuda_graph(device: torch.device) -> Record:
    """Make a recorder into CUDA graphs, on a stream of its own, since torch's default belongs to the first device that
    recorded. The graphs share one memory pool, because only one step of a program runs at a time.

    A graph takes the pool of a live graph, or a new pool if all have been freed: the allocator asserts that a pool is
    new or belongs to a live graph. A capture that fails leaves torch's allocator with its pool and the thread with its
    stream: the next graph takes others.
    """
    graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()
    stream: torch.cuda.Stream | None = None

    def record(function: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
        nonlocal stream, graphs
        with _ONE_CAPTURE, torch.cuda.device(device):
            stream = stream or torch.cuda.Stream(device)
            before, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
            live = next(iter(graphs), None)
            pool = live.pool() if live is not None else None
            try:
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = function()
            except BaseException:
                stream, graphs = None, weakref.WeakSet()
                torch.cuda.set_stream(before)
                raise
            graphs.add(graph)
            graph.replay()  # recording computes nothing
        return outputs, graph.replay

    return record
