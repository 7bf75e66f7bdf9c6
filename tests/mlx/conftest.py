"""Fixtures for tests of the MLX executor."""

import os
from collections.abc import Iterator

import mlx.core as mx
import pytest
from hypothesis import settings


@pytest.fixture(scope="session", autouse=True)
def compiled_here(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Give each process of pytest-xdist a temporary folder: on a CPU, MLX writes compiled code into it."""
    os.environ["TMPDIR"] = str(tmp_path_factory.getbasetemp())


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Make `mx.compile` return its argument: on a CPU it runs a C++ compiler, a second for each new constant.

    Compiled or not, a step is built by the same code. `test_compiled.py` has the compiled ones.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture
def few_examples() -> Iterator[None]:
    """Run a seventh of the examples: there are several precisions, and each example runs its oracle."""
    before = settings.default
    assert before is not None
    settings.register_profile("few", before, max_examples=max(1, before.max_examples // 7))
    settings.load_profile("few")
    yield
    settings.register_profile("before", before)
    settings.load_profile("before")
