"""llama-bench as an engine of `tools/bench.py`: llama.cpp's, built for any instruction set, or a fork's. Not a command.

It measures itself: each repetition is a process of its own, which loads the model, warms up, and says how long its
tokens took.
"""

import json
import subprocess
from functools import cache

from mistral_portable.bench import Measurement
from tools.bench_command import finished
from tools.bench_engines import Setup

__all__ = ["LlamaBench", "llama_bench_of_one_token"]


class LlamaBench:
    """The program at `setup.program`, with the methods that a comparison calls of a Worker.

    build: the commit that it was built from, known after a measurement.
    """

    def __init__(self, setup: Setup) -> None:
        self._command = _command(setup)
        self._peak = 0
        self.build: str | None = None

    def prepare(self, measurement: Measurement, repeats: int) -> bool:
        """Whether it takes the measurement: a prompt, or single tokens, of one sequence."""
        return self._arguments(measurement) is not None

    def seconds(self, measurement: Measurement, repeats: int) -> float:
        """Run one repetition; its seconds. Raises RuntimeError if the program fails."""
        arguments = self._arguments(measurement)
        assert arguments is not None
        output, _, peak = finished([*self._command, *arguments, "-o", "json"])
        [found] = json.loads(output)
        self._peak, self.build = max(self._peak, peak), found["build_commit"]
        return float(found["avg_ns"]) / 1e9

    def peak_memory(self) -> int:
        """The largest resident size of its processes so far, in bytes."""
        return self._peak

    def _arguments(self, measurement: Measurement) -> list[str] | None:
        one_by_one, depth = measurement.chunk == 1, measurement.depth
        if measurement.sequences > 1 or measurement.every_row:
            return None
        if depth and "--n-depth" not in _help(self._command[0]):  # ik_llama.cpp: a prompt, then tokens that alone count
            return ["-p", "0", "-n", "0", "-gp", f"{depth},{measurement.tokens}"] if one_by_one else None
        sizes = ("0", str(measurement.tokens)) if one_by_one else (str(measurement.tokens), "0")
        return ["-p", sizes[0], "-n", sizes[1], *(["-d", str(depth)] if depth else [])]


def llama_bench_of_one_token(setup: Setup) -> list[str]:
    """The command that loads the model, reads 5 tokens and generates one, in a context of 6."""
    command = _command(setup)
    cold = ["--no-warmup"] if "--no-warmup" in _help(command[0]) else ["-w", "0"]  # ik_llama.cpp has the second
    return [*command, "-p", "0", "-n", "0", "-pg", "5,1", *cold]


def _command(setup: Setup) -> list[str]:
    assert setup.program is not None
    return [setup.program, "-m", setup.model, "-r", "1", *(["-t", str(setup.threads)] if setup.threads else [])]


@cache
def _help(program: str) -> str:
    return subprocess.run([program, "--help"], capture_output=True, text=True, check=False).stdout
