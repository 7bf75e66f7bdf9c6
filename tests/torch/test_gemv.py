"""Triton's kernels, where Triton is installed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent.parent


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: it comes with CUDA builds of torch")
def test_products_equal_those_of_unpacked_weights() -> None:
    """Run in another process, because Triton chooses at its import whether it interprets kernels."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    environment = os.environ | {"PYTHONPATH": str(TESTS)} | interpreted
    command = [sys.executable, str(TESTS / "gemv_products.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
