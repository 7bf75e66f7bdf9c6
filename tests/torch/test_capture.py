"""Recording into CUDA graphs, on stand-ins for torch's classes with the rules of its allocator and of its captures."""

import threading
import warnings
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from mistral_portable_torch.capture import Captured, cuda_graph

DEVICES = [torch.device("cuda", index) for index in range(2)]


class Graph:
    """Stands for torch.cuda.CUDAGraph. pools: the pool of each live graph."""

    pools: ClassVar[weakref.WeakKeyDictionary["Graph", object]] = weakref.WeakKeyDictionary()

    def pool(self) -> object:
        return self.pools[self]

    def replay(self) -> None:
        """Compute nothing: these tests check memory, streams and failures only."""


class Machine:
    """Stands for torch.cuda: one capture at a time, a current stream, and what captures leave behind if they fail."""

    def __init__(self) -> None:
        self.current: Any = "default"
        self.underway: list[Any] = []
        self.left_behind: set[object] = set()
        self.streams: list[torch.device] = []  # of each capture, its stream's device
        self.broken: str | None = None

    def make_stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(device=device)

    def set_stream(self, stream: Any) -> None:
        self.current = stream

    def synchronize(self) -> None:
        """Stands for `.item()` of a tensor on the device: not allowed in a capture, which it invalidates."""
        if self.underway:
            self.broken = "operation not permitted when stream is capturing"
            raise RuntimeError(self.broken)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    class Recording:
        """Stands for torch.cuda.graph."""

        def __init__(self, graph: Graph, pool: object | None, stream: Any, capture_error_mode: str) -> None:
            self._graph, self._pool, self._stream = graph, pool, stream

        def __enter__(self) -> None:
            assert not made.underway, "only one capture may be underway in a process"
            assert self._pool is None or self._pool in Graph.pools.values(), "use_count > 0"
            assert self._pool not in made.left_behind, "already recording to mempool_id"
            self._before, made.current = made.current, self._stream
            made.underway.append(self._graph)
            made.streams.append(self._stream.device)

        def __exit__(self, *error: object) -> None:
            made.underway.remove(self._graph)
            if made.broken is not None:  # as torch 2.11: raises before it gives the pool and the stream back
                made.left_behind.add(self._pool or object())
                made.broken = None
                raise RuntimeError("operation failed due to a previous error during capture")
            Graph.pools[self._graph] = self._pool or object()
            made.current = self._before

    Graph.pools.clear()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", made.make_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: made.current)
    monkeypatch.setattr(torch.cuda, "set_stream", made.set_stream)
    return made


@pytest.fixture
def captured(machine: Machine) -> Captured:
    return Captured(cuda_graph(DEVICES[0]))


def run(captured: Captured, key: str, times: int) -> None:
    for _ in range(times):
        captured.run(key, torch.zeros(1), lambda words: {"out": words})


def test_graphs_share_one_pool(captured: Captured) -> None:
    for key in "abc":
        run(captured, key, 3)
    assert len(Graph.pools) == 3
    assert len(set(Graph.pools.values())) == 1


def test_graphs_share_one_pool_after_the_latest_one_was_dropped(captured: Captured) -> None:
    run(captured, "a", 3)
    run(captured, "latest", 2)
    for number in range(31):  # "latest" is the least recently used one then, and is dropped
        run(captured, "a", 1)
        run(captured, str(number), 1)
    assert len(Graph.pools) == 1
    run(captured, "b", 3)
    assert len(Graph.pools) == 2
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


def test_each_program_records_on_a_stream_of_its_own_device(machine: Machine) -> None:
    for device in DEVICES:
        run(Captured(cuda_graph(device)), "a", 3)
    assert machine.streams == DEVICES


def test_captures_of_several_programs_take_turns(machine: Machine) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow(words: torch.Tensor) -> dict[str, Any]:
        if machine.underway:
            entered.set()
            assert go_on.wait(20)
        return {"out": words}

    first, second = (Captured(cuda_graph(device)) for device in DEVICES)
    one = threading.Thread(target=lambda: [first.run("a", torch.zeros(1), slow) for _ in range(2)])
    one.start()
    assert entered.wait(20)
    other = threading.Thread(target=run, args=(second, "a", 2))
    other.start()
    other.join(0.05)
    assert len(machine.streams) == 1
    go_on.set()
    for thread in (one, other):
        thread.join(20)
    assert machine.streams == DEVICES


def test_a_step_that_cannot_be_recorded_is_run_from_then_on_and_a_warning_says_so(
    machine: Machine, captured: Captured
) -> None:
    """Nothing that the failed capture has left behind is used: its pool, its stream as the current one."""
    run(captured, "good", 3)
    calls = []

    def bad(words: torch.Tensor) -> dict[str, Any]:
        calls.append(machine.current)
        machine.synchronize()
        return {"out": words + 1}

    captured.run("bad", torch.zeros(1), bad)
    with pytest.warns(UserWarning, match="slower: the recording as a CUDA graph failed .*operation"):
        assert captured.run("bad", torch.zeros(1), bad)["out"] == 1
    assert machine.current == "default"
    tried = len(machine.streams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(40):
            assert captured.run("bad", torch.full((1,), number), bad)["out"] == number + 1
            run(captured, str(number), 1)  # the failure is remembered, also behind many other steps
    assert len(machine.streams) == tried
    assert set(calls[3:]) == {"default"}
    run(captured, "other", 3)
    assert len(machine.streams) == tried + 1


def test_no_more_recordings_are_tried_after_three_failures(machine: Machine, captured: Captured) -> None:
    def bad(words: torch.Tensor) -> dict[str, Any]:
        machine.synchronize()
        return {"out": words}

    run(captured, "good", 3)
    for key, message in (
        ("a", "of one shape"),
        ("b", "of one shape"),
        ("c", "no decoding step is recorded from now on"),
    ):
        captured.run(key, torch.zeros(1), bad)
        with pytest.warns(UserWarning, match=message):
            captured.run(key, torch.zeros(1), bad)
    assert not Graph.pools
    tried = len(machine.streams)
    run(captured, "d", 3)
    assert len(machine.streams) == tried


def test_an_error_of_the_step_itself_is_raised(captured: Captured) -> None:
    run(captured, "a", 1)

    def wrong(words: torch.Tensor) -> dict[str, Any]:
        raise ZeroDivisionError("of the step")

    with pytest.warns(UserWarning, match="of the step"), pytest.raises(ZeroDivisionError):
        captured.run("a", torch.zeros(1), wrong)
