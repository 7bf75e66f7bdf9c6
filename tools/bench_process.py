"""Measure a whole process that generates one token: wall time and peak memory. Used by `tools/bench.py`."""

import os
import sys

from tools.bench_command import finished
from tools.bench_engines import Setup
from tools.bench_llama_bench import llama_bench_of_one_token

__all__ = ["one_token", "one_token_command"]

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
    return [
        sys.executable,
        "-m",
        "mistral_portable",
        "run",
        _PROMPT,
        *(word for option in options.items() for word in option),
    ]


def _llama_cpp(setup: Setup) -> list[str]:
    threads = str(setup.threads or os.cpu_count())
    return [sys.executable, "-c", _LLAMA_CPP, setup.model, threads, str(_CONTEXT), _PROMPT]


_COMMANDS = {None: _ours, "llama.cpp": _llama_cpp}


def one_token_command(setup: Setup) -> list[str] | None:
    """The command that generates one token; None for engines that have none."""
    if setup.program:
        return llama_bench_of_one_token(setup)
    return _COMMANDS[setup.peer](setup) if setup.peer in _COMMANDS else None


def one_token(setup: Setup) -> tuple[float, int]:
    """Run a fresh process with a context of 4096 tokens; its wall seconds and its peak resident size in bytes.

    Raises RuntimeError if the process fails.
    """
    command = one_token_command(setup)
    assert command is not None
    _, seconds, peak = finished(command, setup.environment)
    return seconds, peak
