"""The team runs a function on all its threads, also beside forks, signals and exits.

Tests of these are scenarios, which run in a process of their own: `python test_team.py NAME`.
"""

import faulthandler
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from mistral_portable_numba.team import Team, _Crew
from numba import cfunc, types
from numba.extending import intrinsic

PATIENCE = 120  # seconds; the machines that run this are shared

# --- the function that the tests run -------------------------------------------------------------------------------

ARRIVED, GENERATION, ROUNDS, HELD, CALLS, RETURNS = 0, 8, 16, 17, 24, 40  # int64 words of a job
_give_way = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


def _fetch_add_of(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """words[index] += value, atomically; returns the value before."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        at = builder.gep(builder.inttoptr(values[0], ir.IntType(64).as_pointer()), [values[1]])
        return builder.atomic_rmw("add", at, values[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), generate


_fetch_add: Any = intrinsic(_fetch_add_of)


@cfunc("void(int64, int64, int64)")
def _entry(job: Any, tid: Any, n: Any) -> None:
    """Count the call, wait while the job is held, meet all other threads `ROUNDS` times, return one after another."""
    _fetch_add(job, CALLS + tid, 1)
    while _fetch_add(job, HELD, 0) != 0:
        _give_way()
    for _ in range(_fetch_add(job, ROUNDS, 0)):
        generation = _fetch_add(job, GENERATION, 0)
        if _fetch_add(job, ARRIVED, 1) == n - 1:
            _fetch_add(job, ARRIVED, -n)
            _fetch_add(job, GENERATION, 1)
        else:
            while _fetch_add(job, GENERATION, 0) == generation:
                _give_way()
    for _ in range(20 * tid):
        _give_way()
    _fetch_add(job, RETURNS + tid, 1)


class Job:
    """The memory of a run, and the number of times that each thread entered it."""

    def __init__(self, rounds: int = 1, *, held: bool = False) -> None:
        self._words = np.zeros(RETURNS + 16, np.int64)
        self._words[ROUNDS], self._words[HELD] = rounds, held
        self.address = self._words.ctypes.data

    def release(self) -> None:
        self._words[HELD] = 0

    def calls(self) -> list[int]:
        return [int(calls) for calls in np.trim_zeros(self._words[CALLS:RETURNS], "b")]

    def returns(self) -> list[int]:
        return [int(returns) for returns in np.trim_zeros(self._words[RETURNS:], "b")]

    def wait_for(self, calls: list[int]) -> None:
        eventually(lambda: self.calls() == calls)


def team_of(threads: int) -> Team:
    address: Any = _entry.address
    return Team(threads, address)


def calls_of_a_run(team: Team) -> list[int]:
    job = Job()
    team.run(job.address)
    return job.calls()


def workers() -> list[str]:
    """Names of live workers; Python also lists a thread whose start was interrupted."""
    alive = (thread.name for thread in threading.enumerate() if thread.is_alive())
    return sorted(name for name in alive if name.startswith("mistral_portable-"))


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# --- in this process -----------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """End a process that hangs because a thread is missing, and show where."""
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_member_runs_once_per_run(threads: int) -> None:
    team, job = team_of(threads), Job(rounds=3)
    for runs in range(1, 51):
        team.run(job.address)
        assert job.calls() == job.returns() == [runs] * threads
    team.close()


def test_ten_thousand_runs() -> None:
    team, job = team_of(2), Job()
    for _ in range(10_000):
        team.run(job.address)
    assert job.calls() == [10_000] * 2
    team.close()


def test_idle_workers_sleep_and_wake_up() -> None:
    team, job = team_of(2), Job()
    for _ in range(20):
        team.run(job.address)
        time.sleep(0.005)
    busy = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - busy < 0.1
    assert job.calls() == [20] * 2
    team.close()


def test_callers_take_turns() -> None:
    """Six threads run jobs on three teams, two teams each."""
    teams, jobs = [team_of(threads) for threads in (2, 3, 2)], [Job() for _ in range(3)]

    def call(first: int) -> None:
        for turn in range(200):
            which = (first + turn % 2) % 3
            teams[which].run(jobs[which].address)

    callers = [threading.Thread(target=call, args=(index % 3,)) for index in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert [job.calls() for job in jobs] == [[400] * 2, [400] * 3, [400] * 2]
    for team in teams:
        team.close()


def test_workers_start_at_the_first_run_and_end_at_close() -> None:
    before = workers()
    team = team_of(3)
    assert workers() == before
    assert calls_of_a_run(team) == [1] * 3
    assert workers() == sorted([*before, "mistral_portable-1", "mistral_portable-2"])
    team.close()
    assert workers() == before
    team.close()
    with pytest.raises(RuntimeError, match="closed"):
        calls_of_a_run(team)


def test_an_unused_team_closes() -> None:
    team = team_of(2)
    team.close()
    with pytest.raises(RuntimeError, match="closed"):
        calls_of_a_run(team)


def test_close_waits_for_the_run() -> None:
    team, job = team_of(2), Job(held=True)
    caller = threading.Thread(target=team.run, args=(job.address,))
    caller.start()
    job.wait_for([1, 1])
    closer = threading.Thread(target=team.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    job.release()
    closer.join()
    caller.join()


def test_a_dropped_team_is_collected_and_its_workers_end() -> None:
    before = workers()
    team = team_of(3)
    calls_of_a_run(team)
    gone = weakref.ref(team)
    del team
    gc.collect()
    assert gone() is None
    eventually(lambda: workers() == before)


def test_a_failed_start_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    before, start = workers(), threading.Thread.start

    def fail_the_second(thread: threading.Thread) -> None:
        if thread.name == "mistral_portable-2":
            raise RuntimeError("can't start new thread")
        start(thread)

    team, job = team_of(3), Job()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail_the_second)
        with pytest.raises(RuntimeError, match="can't start"):
            team.run(job.address)
    eventually(lambda: workers() == before)
    team.run(job.address)
    assert job.calls() == [1] * 3
    team.close()


@pytest.mark.parametrize(("threads", "entry"), [(0, 1), (-1, 1), (2, 0)])
def test_invalid_arguments_are_refused(threads: int, entry: int) -> None:
    with pytest.raises(ValueError, match="a team needs"):
        Team(threads, entry)


# --- in a process of its own ---------------------------------------------------------------------------------------


def in_a_child(scene: Callable[[], None]) -> None:
    """Fork, run the scene in the child, and check its exit status in the parent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: a process with threads forks
        process = os.fork()
    if process == 0:
        signal.alarm(PATIENCE)  # ends a child that hangs
        try:
            scene()
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def child_runs(team: Team) -> None:
    """Check that a child has its own workers."""

    def scene() -> None:
        job = Job(rounds=3)
        for _ in range(5):
            team.run(job.address)
        assert job.calls() == [5] * team.threads
        assert len(workers()) == team.threads - 1
        team.close()
        assert not workers()

    in_a_child(scene)


def fork_when_idle() -> None:
    team, job = team_of(3), Job()
    child_runs(team)
    for _ in range(3):
        team.run(job.address)
        child_runs(team)
    assert job.calls() == [3] * 3
    team.close()


def fork_in_a_run() -> None:
    """Fork while another thread holds the team's lock and all members are in the function."""
    team, job = team_of(3), Job(held=True)
    caller = threading.Thread(target=team.run, args=(job.address,))
    caller.start()
    job.wait_for([1, 1, 1])
    child_runs(team)
    job.release()
    caller.join()
    team.run(job.address)
    assert job.calls() == [2] * 3
    team.close()


def fork_and_drop() -> None:
    """A child that drops the team neither ends the parent's workers nor waits for them."""
    teams, job = [team_of(2)], Job()
    teams[0].run(job.address)
    in_a_child(teams.clear)
    teams[0].run(job.address)
    assert job.calls() == [2] * 2


_kept: list[object] = []  # keeps objects until the interpreter clears its modules


def exit_when_idle() -> None:
    team = team_of(3)
    calls_of_a_run(team)
    _kept.append(team)


def exit_in_a_run() -> None:
    team, job = team_of(3), Job(held=True)
    threading.Thread(target=team.run, args=(job.address,), daemon=True).start()
    job.wait_for([1, 1, 1])
    _kept.append(job)


def interrupts_in_runs() -> None:
    """After each Ctrl-C a run has happened on all threads or on none, and the next run works."""
    inside = (Team.run.__code__, _Crew.run.__code__)
    team, job, interrupts = team_of(2), Job(rounds=2), 0

    def interrupt(number: int, frame: Any) -> None:
        if frame.f_code in inside:  # anywhere else it would end the test
            raise KeyboardInterrupt

    team.run(job.address)
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0003)
    while interrupts < 1000:
        try:
            team.run(job.address)
        except KeyboardInterrupt:
            interrupts += 1
            first, second = job.calls()
            assert first == second
    signal.setitimer(signal.ITIMER_REAL, 0)
    team.run(job.address)
    team.close()


def interrupts_in_starts() -> None:
    """After a Ctrl-C at any moment of a first run the next run works, and no worker is left at the end."""
    calls_of_a_run(team_of(1))  # compiles first: an interrupt in llvmlite can make it free memory twice
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    gc.disable()  # Python ignores an exception in a finalizer, so the interrupt would be lost
    interrupts = 0
    for _ in range(500):
        team, job = team_of(3), Job()
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 4e-4))
            team.run(job.address)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (KeyboardInterrupt, RuntimeError):  # interrupted at the wrong moment, Thread.start raises RuntimeError
            interrupts += 1
        before = sum(job.calls()) // 3
        team.run(job.address)
        assert job.calls() == [before + 1] * 3
    assert interrupts > 50
    del team
    eventually(lambda: not workers())


SCENARIOS = (
    *(exit_when_idle, exit_in_a_run),
    *(fork_when_idle, fork_in_a_run, fork_and_drop, interrupts_in_runs, interrupts_in_starts),
)


@pytest.mark.parametrize("scenario", [scenario.__name__ for scenario in SCENARIOS])
def test_scenario(scenario: str) -> None:
    if sys.platform == "win32" and not scenario.startswith("exit"):
        pytest.skip("no fork, no timers")
    done = subprocess.run([sys.executable, __file__, scenario], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - float(done.stdout) < 10, "its exit takes too long"


if __name__ == "__main__":
    next(scenario for scenario in SCENARIOS if scenario.__name__ == sys.argv[1])()
    print(time.monotonic())
