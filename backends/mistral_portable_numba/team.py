"""A team of threads that runs one compiled function; the caller is one of them.

From the start of a run to its end, all is native code without the GIL: a busy interpreter does not delay the workers,
and Ctrl-C, which Python handles only afterwards, cannot leave them out of step. Threads wait on the locks of Python's C
API, which every platform has, as semaphores: each worker has one that starts it and one that says that it is done.
"""

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm

__all__ = ["Team", "yield_address"]

# To sleep and wake up takes 5 to 100 us, so a waiting thread first tries for some 300 us. It yields between the tries,
# so that more threads than cores do not hold each other up.
_NATIVE = """
%shared = type { ptr, i64, i64 }  ; entry (null: end), threads, job; as _Shared

declare i32 @acquire(ptr, i32)
declare void @release(ptr)
declare i32 @yield()

define internal void @wait(ptr %lock) {
  br label %try
try:
  %tries = phi i64 [ 0, %0 ], [ %more, %later ]
  %got = call i32 @acquire(ptr %lock, i32 0)
  %done = icmp ne i32 %got, 0
  br i1 %done, label %end, label %later
later:
  call i32 @yield()
  %more = add i64 %tries, 1
  %again = icmp ult i64 %more, 1000
  br i1 %again, label %try, label %sleep
sleep:
  call i32 @acquire(ptr %lock, i32 1)
  br label %end
end:
  ret void
}

define internal void @each(ptr %locks, i64 %count, ptr %do) {
  br label %next
next:
  %index = phi i64 [ 0, %0 ], [ %after, %one ]
  %more = icmp ult i64 %index, %count
  br i1 %more, label %one, label %end
one:
  %at = getelementptr ptr, ptr %locks, i64 %index
  %lock = load ptr, ptr %at
  call void %do(ptr %lock)
  %after = add i64 %index, 1
  br label %next
end:
  ret void
}

define internal void @work(ptr %shared, i64 %member) {
  %entry = load ptr, ptr %shared
  %at_threads = getelementptr %shared, ptr %shared, i32 0, i32 1
  %threads = load i64, ptr %at_threads
  %at_job = getelementptr %shared, ptr %shared, i32 0, i32 2
  %job = load i64, ptr %at_job
  call void %entry(i64 %job, i64 %member, i64 %threads)
  ret void
}

define void @lead(ptr %shared, ptr %starts, ptr %finishes, i64 %workers) {
  call void @each(ptr %starts, i64 %workers, ptr @release)
  call void @work(ptr %shared, i64 0)
  call void @each(ptr %finishes, i64 %workers, ptr @wait)
  ret void
}

define void @follow(ptr %shared, ptr %start, ptr %finish, i64 %member) {
  br label %next
next:
  call void @wait(ptr %start)
  %entry = load ptr, ptr %shared
  %ended = icmp eq ptr %entry, null
  br i1 %ended, label %end, label %run
run:
  call void @work(ptr %shared, i64 %member)
  call void @release(ptr %finish)
  br label %next
end:
  ret void
}
"""

# Python's locks as C has them. Native code calls them without the GIL, which they do not need.
_api = ctypes.pythonapi
_allocate = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThread_allocate_lock", _api))
_free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyThread_free_lock", _api))
_acquire = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(("PyThread_acquire_lock", _api))
_release = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyThread_release_lock", _api))


class Team:
    """`threads` threads, the caller and workers, that run the C function `void entry(int64 job, int64 tid, int64 n)`.

    The workers start at the first run, and in a forked child at its first. They end with `close`, with the last
    reference to the team, or with the process.

    Example: `team = Team(2, address); team.run(job)` is entry(job, 0, 2) here and entry(job, 1, 2) on a worker.
    """

    def __init__(self, threads: int, entry: int) -> None:
        """`entry`: the function's address. All threads are in it at once: it may have barriers."""
        if threads < 1 or not entry:
            raise ValueError(f"a team needs a thread and a function, not {threads} threads and address {entry}")
        self.threads = threads
        self._entry = entry
        self._closed = False
        self._turn = threading.Lock()
        self._crew: _Crew | None = None
        _teams.add(self)

    def run(self, job: int) -> None:
        """Call entry(job, tid, threads) on all threads; returns when all have returned. Callers take turns."""
        with self._turn:
            if self._closed:
                raise RuntimeError("this team is closed")
            if self._crew is None:
                self._crew = self._start()
            self._crew.run(job)

    def close(self) -> None:
        """End the workers, after the run that is in progress if there is one."""
        with self._turn:
            self._closed = True
            if self._crew is not None:
                self._crew.end()
                self._crew.join()

    def _start(self) -> "_Crew":
        crew = _Crew(self.threads, self._entry)
        end = weakref.finalize(self, crew.end)
        end.atexit = False  # the process ends its threads itself
        try:
            crew.start()
        except BaseException:  # no more threads, or Ctrl-C: the next run starts anew
            end()
            raise
        return crew

    def _forget(self) -> None:
        """In a forked child: the workers are not there, nor the thread that may hold the lock."""
        self._turn, self._crew = threading.Lock(), None


class _Shared(ctypes.Structure):
    """`%shared`: what a run is."""

    _fields_ = (("entry", ctypes.c_void_p), ("threads", ctypes.c_int64), ("job", ctypes.c_int64))


class _Crew:
    """A team's workers, and the memory that they share with the caller. They keep it alive, but not the team."""

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
        """Start the workers. If it fails, `end` is due."""
        for worker in self._workers:
            worker.start()

    def run(self, job: int) -> None:
        """Run a job on the calling thread and the workers."""
        self._shared.job = job
        self._native.lead(ctypes.byref(self._shared), self._starts, self._finishes, len(self._starts))

    def end(self) -> None:
        """Let the idle workers return. In a forked child nothing: what it has are copies of their locks."""
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
    """The compiled functions, and the engine that they live in."""

    engine: Any
    lead: Callable[..., None]
    follow: Callable[..., None]


@cache
def _compile() -> _Native:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_NATIVE)
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    for name, address in (("acquire", _address(_acquire)), ("release", _address(_release)), ("yield", yield_address())):
        engine.add_global_mapping(module.get_function(name), address)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return _Native(engine, *(signature(engine.get_function_address(name)) for name in ("lead", "follow")))


def yield_address() -> int:
    """The address of the system's function that lets another thread have the core."""
    if sys.platform == "win32":
        return _address(ctypes.WinDLL("kernel32").SwitchToThread)
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


_teams: "weakref.WeakSet[Team]" = weakref.WeakSet()


def _forget_all() -> None:
    for team in _teams:
        team._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
