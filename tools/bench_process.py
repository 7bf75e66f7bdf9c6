"""Measure a whole process that generates one token: wall time and peak memory. Used by `tools/bench.py`."""

import os
import shlex
import subprocess
import sys
import time

from tools.bench_engines import Setup

__all__ = ["COMMANDS", "one_token"]

_PROMPT = "Once upon a time"
_CONTEXT = 4096
_LLAMA_CPP = (
    "import sys, llama_cpp; _, model, threads, context, prompt = sys.argv; "
    "llama_cpp.Llama(model, n_ctx=int(context), n_threads=int(threads), verbose=False)(prompt, max_tokens=1)"
)


def _ours(setup: Setup) -> list[str]:
    options = {
        "--model": setup.model,
        "--backend": setup.backend,
        "--max-context": str(_CONTEXT),
        "--max-tokens": "1",
    }
    options |= {"--threads": str(setup.threads)} if setup.threads else {}
    options |= {"--quantize": setup.quantize} if setup.quantize else {}
    return ["-m", "mistral_portable", "run", _PROMPT, *(word for option in options.items() for word in option)]


def _llama_cpp(setup: Setup) -> list[str]:
    return ["-c", _LLAMA_CPP, setup.model, str(setup.threads or os.cpu_count()), str(_CONTEXT), _PROMPT]


COMMANDS = {None: _ours, "llama.cpp": _llama_cpp}
"""By peer (None: this library), the function that makes the arguments of Python from a Setup."""


def one_token(setup: Setup) -> tuple[float, int]:
    """Run a fresh process with a context of 4096 tokens; its wall seconds and its peak resident size in bytes.

    The size is that of the process or of its largest child, mapped pages of the file included. Raises RuntimeError if
    the process fails.
    """
    command = [sys.executable, *COMMANDS[setup.peer](setup)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | setup.environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
