"""Memory of CUDA graphs, on stand-ins for torch's classes: a graph uses a pool that is new or that a live graph has."""

import weakref
from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from mistral_portable_torch.capture import Captured, cuda_graph


class Graph:
    """Stands for torch.cuda.CUDAGraph. pools: the pool of each live graph."""

    pools: ClassVar[weakref.WeakKeyDictionary["Graph", object]] = weakref.WeakKeyDictionary()

    def pool(self) -> object:
        return self.pools[self]

    def replay(self) -> None:
        """Compute nothing: these tests check memory only."""


class Recording:
    """Stands for torch.cuda.graph, and asserts like torch's allocator that a given pool belongs to a live graph."""

    def __init__(self, graph: Graph, pool: object | None, capture_error_mode: str) -> None:
        self._graph, self._pool = graph, pool

    def __enter__(self) -> None:
        assert self._pool is None or self._pool in Graph.pools.values(), "use_count > 0"

    def __exit__(self, *error: object) -> None:
        Graph.pools[self._graph] = self._pool or object()


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    Graph.pools.clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    return Captured(cuda_graph(torch.device("cuda", 0)))


def run(captured: Captured, key: str, times: int) -> None:
    for _ in range(times):
        captured.run(key, torch.zeros(1), lambda words: {"out": words})


def test_graphs_share_one_pool(captured: Captured) -> None:
    for key in "abc":
        run(captured, key, 3)
    assert len(Graph.pools) == 3
    assert len(set(Graph.pools.values())) == 1


def test_steps_are_recorded_again_after_all_graphs_are_freed(captured: Captured) -> None:
    run(captured, "a", 3)
    captured.clear()  # as when the cache has grown
    assert not Graph.pools
    run(captured, "a", 3)
    for number in range(99):  # shapes that come once
        run(captured, str(number), 1)
    assert not Graph.pools
    run(captured, "b", 3)
    assert len(Graph.pools) == 1
