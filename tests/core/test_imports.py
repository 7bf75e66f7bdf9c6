"""The cost of `import mistral_portable`: no framework, no tokenizer, no hub, and little time."""

import subprocess
import sys

FOREIGN = (
    "torch",
    "mlx",
    "numba",
    "transformers",
    "jax",
    "tensorflow",
    "gguf",
    "mistral_common",
    "huggingface_hub",
    "llguidance",
    "starlette",
    "uvicorn",
    "prometheus_client",
    "jinja2",
)


def in_a_fresh_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def seconds(module: str) -> float:
    code = f"import time; begin = time.process_time(); import {module}; print(time.process_time() - begin)"
    return float(in_a_fresh_process(code))


def test_the_core_imports_no_framework() -> None:
    code = f"import sys, mistral_portable; print([name for name in {FOREIGN} if name in sys.modules])"
    assert in_a_fresh_process(code).strip() == "[]"


def test_the_core_imports_in_less_than_300_ms_beyond_numpy() -> None:
    """Processor time, the best of several alternating runs: waiting on a busy machine does not count."""
    pairs = [(seconds("numpy"), seconds("mistral_portable")) for _ in range(5)]
    numpy, ours = (min(times) for times in zip(*pairs, strict=True))
    assert ours - numpy < 0.3
