"""The toy backend climbs the ladder. A plugin's own test file looks like this."""

import pytest
from mistral_portable_toy import BACKEND

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.testing.suite import Target, test_conformance

__all__ = ["test_conformance"]


@pytest.fixture
def target() -> Target:
    return Target(BACKEND, ExecutorOptions(dtype="float32"))
