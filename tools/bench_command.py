"""Run a command to its end: what it wrote, how long it took, and the memory it had. Not a command itself."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

__all__ = ["finished"]


def finished(command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> tuple[str, float, int]:
    """Run a command; what it wrote to standard output, its wall seconds, and its peak resident size in bytes.

    environment: variables beside this process's. The size is that of the process or of its largest child, mapped pages
    of files included. Raises RuntimeError if the process fails.
    """
    with tempfile.TemporaryFile("w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, env=os.environ | environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}")
        output.seek(0)
        return output.read(), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
