"""MLX's programs in several threads, in forked children, and at the end of a process."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mistral_portable_mlx.inputs import step_inputs
from mistral_portable_mlx.matrices import read_matrix
from mlx_sessions import Session, text

from mistral_portable.cache import Chunk

pytestmark = pytest.mark.usefixtures("uncompiled")


def test_steps_from_several_threads_take_turns() -> None:
    session, alone = Session(), Session()
    lanes = [session.manager.open() for _ in range(4)]
    plans = [session.manager.plan([Chunk(lane, text(20, lane), [19])]) for lane in lanes]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda lane=lane: found.update({lane: session.program.step(plans[lane])["logits"]}))
        for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lane in lanes:
        # The tolerance: sums of other shapes are added up in another order, in float32.
        np.testing.assert_allclose(found[lane][0], alone.begin(text(20, lane))[1][-1], rtol=1e-5, atol=1e-5)


def test_programs_do_not_use_mlx_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One steps while others read their weights."""
    events: list[tuple[str, int]] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            events.append(("begin", threading.get_ident()))
            time.sleep(0.001)  # lets others begin, if they can
            result = function(*arguments)
            events.append(("end", threading.get_ident()))
            return result

        return run

    session = Session()
    lane, _ = session.begin(text(5))
    monkeypatch.setattr("mistral_portable_mlx.program.read_matrix", watched(read_matrix))
    monkeypatch.setattr("mistral_portable_mlx.program.step_inputs", watched(step_inputs))
    threads = [threading.Thread(target=Session), threading.Thread(target=lambda: session.decode(lane, 20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({thread for _, thread in events}) == 2
    for begin, end in zip(events[::2], events[1::2], strict=True):
        assert (begin[0], end[0], begin[1]) == ("begin", "end", end[1])


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "collected"])
def test_programs_that_have_ended_leave_no_thread(closed: bool) -> None:
    def threads_after(count: int) -> int:
        for _ in range(count):
            session = Session()
            session.begin([1, 2, 3])
            if closed:
                session.program.close()
            del session
            gc.collect()
        return len(list(Path("/proc/self/task").iterdir()))

    assert threads_after(2) == threads_after(3)


def test_a_forked_child_is_told_so() -> None:
    """The child has none of MLX's threads, and a step would hang; the parent goes on."""
    script = """
import os
import mistral_portable as mp
from mistral_portable.errors import BackendError
model = mp.load("tiny", backend="mlx")
before = model.generate("Once", max_tokens=3, temperature=0).tokens
child = os.fork()
if child == 0:
    for call in (lambda: model.generate("Once", max_tokens=3), lambda: mp.load("tiny", backend="mlx")):
        try:
            call()
        except BackendError as error:
            print(error, flush=True)
    model.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert model.generate("Once", max_tokens=3, temperature=0).tokens == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "does not run in its forked child" in first
    assert first == second


@pytest.mark.parametrize("end", ["", "model.close()", "import os; os.kill(os.getpid(), 2)"])
def test_a_process_ends_as_it_should(end: str) -> None:
    """MLX's own threads do not block the end of the interpreter."""
    script = f"""
import signal, threading
import mistral_portable as mp
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored, and so its children
model = mp.load("tiny", backend="mlx")
worker = threading.Thread(target=model.generate, args=("Once",), kwargs={{"max_tokens": 3}})
worker.start()
worker.join()
print(len(model.generate("Once", max_tokens=3).tokens), flush=True)
{end}
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
        assert done.stdout == "3\n", done.stderr
        assert done.returncode == (-2 if "kill" in end else 0), done.stderr
