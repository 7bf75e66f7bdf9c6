"""The reference climbs its own ladder: float32 against float64, chunked against one-shot, ragged against alone."""

from pathlib import Path

import pytest

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.reference import BACKEND
from mistral_portable.testing.suite import Target, test_conformance

__all__ = ["test_conformance"]


@pytest.fixture(scope="module", params=["float32", "float64"])
def target(request: pytest.FixtureRequest) -> Target:
    return Target(BACKEND, ExecutorOptions(dtype=request.param), Path(__file__).parents[1] / "xfails" / "reference.txt")
