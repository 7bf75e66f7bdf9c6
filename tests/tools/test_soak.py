"""The soak: a short one ends well, and growth is found."""

import subprocess
import sys

import pytest

from tools.soak import growth


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_a_short_one() -> None:
    options = ["--minutes", "0.1", "--every", "0.5", "--clients", "4", "--most-growth", "1000"]
    done = subprocess.run([sys.executable, "-m", "tools.soak", *options], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("all well\n")
    assert " 200:" in done.stdout


def test_memory_that_grows_to_the_end() -> None:
    assert growth([float(number) for number in range(40)]) == 10
    assert growth([*range(20), *[20.0] * 20]) == 0
