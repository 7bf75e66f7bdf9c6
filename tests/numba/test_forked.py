"""Programs of the Numba executor in forked children."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from numba_sessions import Session, text


def in_process_of_its_own(*arguments: str) -> list[str]:
    """Run this file as a program, which finds modules where this process does. The words that it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def fork() -> None:
    """Step in a child and in its parent, and print both results. Run in a process of its own."""
    session = Session()
    lane, _ = session.begin(text(30))
    child = os.fork()
    logits = session.feed(lane, text(5, 1)).tobytes().hex()
    if child:
        assert os.waitpid(child, 0)[1] == 0  # first: what both print at once is mixed
    print(logits, flush=True)
    if child == 0:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_step() -> None:
    printed = in_process_of_its_own()
    session = Session()
    expected = session.feed(session.begin(text(30))[0], text(5, 1))
    assert printed == [expected.tobytes().hex()] * 2


def fork_during_steps() -> None:
    """Fork while another thread steps; each child steps another lane. Run in a process of its own."""
    session, busy = Session(), True

    def keep_stepping() -> None:
        lane, _ = session.begin(text(1))
        while busy:
            session.feed(lane, [5])
            session.manager.rollback(lane, 1)

    other = session.begin(text(30))[0]
    thread = threading.Thread(target=keep_stepping)
    thread.start()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that hangs
            session.feed(other, text(5, 1))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    busy = False
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_during_a_step_can_step() -> None:
    in_process_of_its_own("busy")


if __name__ == "__main__":
    fork_during_steps() if sys.argv[1:] else fork()
