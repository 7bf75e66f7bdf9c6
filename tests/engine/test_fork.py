"""A child that is forked while another thread is in a step finds every lock free and nothing half done, on numba and on
the reference."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal, sys, threading
import mistral_portable as mp
model = mp.load("tiny", backend=sys.argv[1], threads=1)
expected = model.generate("Once", max_tokens=3, temperature=0).tokens
busy = True
def keep_busy():
    while busy:
        model.logits([[1, 2, 3]] * 3)
thread = threading.Thread(target=keep_busy)
thread.start()
for _ in range(40):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that hangs
        same = model.generate("Once", max_tokens=3, temperature=0).tokens == expected
        model.logits([[1, 2]])
        os._exit(0 if same else 1)
    status = os.waitpid(child, 0)[1]
    if status:
        busy = False
        sys.exit(f"a child ended with {status}")
busy = False
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_child_forked_during_a_step_generates(backend: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, backend], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
