"""Runs checks of Triton's kernels in a process of their own: Triton chooses at its import whether it interprets."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

__all__ = ["needs_triton", "run_checks"]

TESTS = Path(__file__).parent

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: it comes with CUDA builds of torch"
)


def run_checks(file: str) -> None:
    """Run a file of this folder: on a GPU its kernels are compiled, else interpreted. It fails if the file does."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    # On a bare machine this project, too, is found by PYTHONPATH alone (tools/on_cuda.py).
    paths = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths} | interpreted
    done = subprocess.run(
        [sys.executable, str(TESTS / file)], capture_output=True, text=True, env=environment, timeout=900
    )
    assert done.returncode == 0, done.stderr
