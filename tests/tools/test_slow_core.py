"""The tool that slows a core: it takes some of the CPU that it is told to, and ends by itself."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="priorities and affinity as Linux has them")
def test_it_takes_time_of_a_cpu_and_ends() -> None:
    cpu = max(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "tools.slow_core", str(cpu), "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "PermissionError" in done.stderr:
        pytest.skip("only root may set priorities")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("took ")
    assert done.stdout.endswith(f"% of CPU {cpu}\n")
