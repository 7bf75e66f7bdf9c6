"""The conformance ladder on the JAX executor: float32 in pages of 4 slots, which most texts cross, and bfloat16."""

from dataclasses import replace

import pytest
from mistral_portable_jax.backend import BACKEND, JAXBackend

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.testing.suite import Target, test_conformance

__all__ = ["test_conformance"]


pytestmark = pytest.mark.filterwarnings("ignore:.* are unpacked to")


class SmallPages(JAXBackend):
    """The same executor with pages of 4 slots."""

    capabilities = replace(BACKEND.capabilities, page_size=4)


@pytest.fixture(params=["float32", "bfloat16"])
def target(request: pytest.FixtureRequest) -> Target:
    # A case has steps of several shapes, and each is compiled, in half a second.
    backend = SmallPages() if request.param == "float32" else BACKEND
    return Target(backend, ExecutorOptions(dtype=request.param), share=25)
