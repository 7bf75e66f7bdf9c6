"""A team of threads that runs one compiled function; the calling thread is one of them.

A run is native code without the GIL from start to end (`team_loops.ll`): a busy interpreter does not delay the workers,
and Ctrl-C, which Python handles after the run, cannot leave them out of step. The locks of Python's C API, which every
platform has, serve as semaphores: each worker has one that starts it and one that reports that it is done.
"""

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from mistral_portable.forks import make_locks

__all__ = ["Team", "yield_address"]

# The locks of Python's C API. They do not need the GIL, so native code calls them without it.
_api = ctypes.pythonapi
_allocate = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThread_allocate_lock", _api))
_free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyThread_free_lock", _api))
_acquire = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(("PyThread_acquire_lock", _api))
_release = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyThread_release_lock", _api))


class Team:
    """A caller and `threads - 1` workers that run the C function `void entry(int64 job, int64 thread, int64 threads)`.

    The workers start at the first run; a forked child starts its own at its first run. They end with `close`, with the
    last reference to the team, or with the process.

    Example: with `team = Team(2, address)`, `team.run(job)` calls entry(job, 0, 2) on the calling thread and
    entry(job, 1, 2) on a worker.
    """

    def __init__(self, threads: int, entry: int) -> None:
        """entry: the function's address; all threads run it at the same time, so it may use barriers.

        Raises ValueError if there is no thread or no function.
        """
        if threads < 1 or not entry:
            raise ValueError(f"a team needs a thread and a function, not {threads} threads and address {entry}")
        self.threads = threads
        self._entry = entry
        self._closed = False
        self._crew: _Crew | None
        make_locks(self, Team._make_locks)

    def run(self, job: int) -> None:
        """Call entry(job, thread, threads) on all threads and return when all have returned. Callers take turns.

        Raises RuntimeError if the team is closed.
        """
        with self._turn:
            if self._closed:
                raise RuntimeError("this team is closed")
            if self._crew is None:
                self._crew = self._start()
            self._crew.run(job)

    def close(self) -> None:
        """End the workers, after a run in progress."""
        with self._turn:
            self._closed = True
            if self._crew is not None:
                self._crew.end()
                self._crew.join()

    def _start(self) -> "_Crew":
        """Start the workers."""
        crew = _Crew(self.threads, self._entry)
        end = weakref.finalize(self, crew.end)
        end.atexit = False  # the process ends its threads itself
        try:
            crew.start()
        except BaseException:  # no more threads, or Ctrl-C: the next run starts anew
            end()
            raise
        return crew

    def _make_locks(self) -> None:
        """Also without a crew: a forked child does not have the workers, and starts its own at its first run."""
        self._turn = threading.Lock()
        self._crew = None


class _Shared(ctypes.Structure):
    """`%shared` of team_loops.ll: the parameters of a run."""

    _fields_ = (("entry", ctypes.c_void_p), ("threads", ctypes.c_int64), ("job", ctypes.c_int64))


class _Crew:
    """A team's workers and the memory that they share with the caller. Workers keep this object alive, not the team."""

    def __init__(self, threads: int, entry: int) -> None:
        self._native = _compile()
        self._process = os.getpid()
        self._shared = _Shared(entry, threads)
        pointers = ctypes.c_void_p * (threads - 1)
        self._starts, self._finishes = pointers(), pointers()
        for locks in (self._starts, self._finishes):
            weakref.finalize(self, _free_all, locks).atexit = False
            for worker in range(threads - 1):
                locks[worker] = _allocate()
                _acquire(locks[worker], 1)
        self._workers = [
            threading.Thread(target=self._follow, args=(worker,), name=f"mistral_portable-{worker + 1}", daemon=True)
            for worker in range(threads - 1)
        ]

    def start(self) -> None:
        """Start the workers. The caller calls `end` if this raises."""
        for worker in self._workers:
            worker.start()

    def run(self, job: int) -> None:
        """Run a job on the calling thread and the workers."""
        self._shared.job = job
        self._native.lead(ctypes.byref(self._shared), self._starts, self._finishes, len(self._starts))

    def end(self) -> None:
        """Let the idle workers return. Does nothing in a forked child, which holds copies of their locks only."""
        if os.getpid() == self._process:
            self._shared.entry = None
            for lock in self._starts:
                _release(lock)

    def join(self) -> None:
        """Wait until the workers have ended."""
        for worker in self._workers:
            worker.join()

    def _follow(self, worker: int) -> None:
        self._native.follow(ctypes.byref(self._shared), self._starts[worker], self._finishes[worker], worker + 1)


def _free_all(locks: "ctypes.Array[ctypes.c_void_p]") -> None:
    for lock in filter(None, locks):
        _free(lock)


@dataclass(frozen=True)
class _Native:
    """The compiled functions of team_loops.ll, and the engine that owns their code."""

    engine: Any
    lead: Callable[..., None]
    follow: Callable[..., None]


@cache
def _compile() -> _Native:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(Path(__file__).with_name("team_loops.ll").read_text(encoding="utf-8"))
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    for name, address in (("acquire", _address(_acquire)), ("release", _address(_release)), ("yield", yield_address())):
        engine.add_global_mapping(module.get_function(name), address)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return _Native(engine, *(signature(engine.get_function_address(name)) for name in ("lead", "follow")))


def yield_address() -> int:
    """The address of the system's function that yields the core to another thread."""
    if sys.platform == "win32":
        return _address(ctypes.WinDLL("kernel32").SwitchToThread)
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
