"""The conformance ladder on the Numba executor: float32, the default dtype, and the 8-bit cache."""

import pytest
from mistral_portable_numba import BACKEND

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.testing.suite import Target, test_conformance, test_stages

__all__ = ["test_conformance", "test_stages"]


@pytest.fixture(
    scope="module",
    params=[("float32", "float32"), (None, None), ("int8", "q8_0")],
    ids=["float32", "default", "q8_0 cache"],
)
def target(request: pytest.FixtureRequest) -> Target:
    dtype, kv_cache = request.param
    return Target(BACKEND, ExecutorOptions(dtype=dtype, kv_cache=kv_cache, threads=2))
