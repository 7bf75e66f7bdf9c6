"""`run --stages`: Ctrl-C reaches all processes of a terminal, and ends them quietly."""

import re
import time
from pathlib import Path

import pytest
from cli.processes import Terminal

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="finds child processes as Linux lists them"
)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def runs(pid: int) -> bool:
    """Whether a process is there, and not only its exit status."""
    try:
        return re.search(r"\) Z", Path(f"/proc/{pid}/stat").read_text()) is None
    except OSError:
        return False


def test_ctrl_c_ends_all_processes() -> None:
    with Terminal("run", "Once", "--stages", "2", "--ignore-eos", "--max-tokens", "30000") as terminal:
        terminal.expect("Once \\w+ \\w+")
        processes = children(terminal.pid)
        assert len(processes) >= 2
        assert terminal.interrupt() == 130
        assert "Traceback" not in terminal.text
    until = time.monotonic() + 60
    while any(runs(pid) for pid in processes):
        assert time.monotonic() < until
        time.sleep(0.01)
