"""Settings and fixtures that tests of the MLX executor share."""

import os
from collections.abc import Iterator
from itertools import count

import mlx.core as mx
import pytest
from filelock import FileLock, Timeout
from mistral_portable_numba.compiler.objects import default_folder


@pytest.fixture(scope="session", autouse=True)
def compiled_here() -> Iterator[None]:
    """Give this process a temporary folder of its own: on a CPU, MLX writes compiled code into it, and reads it again.

    The folders lie beside the cache of kernels and are kept. A process takes the first one that no other has.
    """
    for number in count():
        folder = default_folder() / "tests" / f"mlx-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        os.environ["TMPDIR"] = str(folder)
        yield
        lock.release()
        return


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Make `mx.compile` return its argument: on a CPU it runs a C++ compiler, a second for each new constant.

    Compiled or not, a step is built by the same code. `test_compiled.py` has the compiled ones.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        mx.disable_compile()
    yield
    mx.enable_compile()
