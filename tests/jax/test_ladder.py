"""The conformance ladder on the JAX executor, in float32 and bfloat16."""

import pytest
from mistral_portable_jax import BACKEND

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.testing.suite import Target, test_conformance

__all__ = ["test_conformance"]


pytestmark = pytest.mark.filterwarnings("ignore:.* are unpacked to")


@pytest.fixture(params=["float32", "bfloat16"])
def target(request: pytest.FixtureRequest) -> Target:
    # A case has steps of several shapes, and each is compiled, in half a second.
    return Target(BACKEND, ExecutorOptions(dtype=request.param), share=25)
