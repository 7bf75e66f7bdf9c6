"""`serve` in a process of its own."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cli.processes import COMMAND
from serving import PATIENCE

__all__ = ["Process", "started"]


@dataclass
class Process:
    """A server's process and the lines that it wrote until it was ready."""

    process: subprocess.Popen[str]
    lines: list[str]

    def end(self) -> tuple[int, str]:
        """Wait for the end; return the status and the rest of the log."""
        _, rest = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, rest


@contextmanager
def started(*options: str, ready: str) -> Iterator[Process]:
    """`serve` with options, from the line on that says what `ready` does."""
    command = [*COMMAND, "serve", "--backend", "numba", "--parallel", "2", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            lines = [process.stderr.readline()]
            while not re.search(ready, lines[-1]):
                assert lines[-1], lines
                lines.append(process.stderr.readline())
            yield Process(process, lines)
        finally:
            process.kill()
