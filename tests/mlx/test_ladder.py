"""The conformance ladder on the MLX executor, on the device that MLX takes here: precisions and both caches."""

import pytest
from mistral_portable_mlx import BACKEND

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.testing.suite import Target, test_conformance, test_greedy, test_stages

__all__ = ["test_conformance", "test_greedy", "test_stages"]

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(
    params=[("float32", None), ("float32", "q8_0"), ("float16", None), ("bfloat16", "q8_0")],
    ids=["float32", "float32, q8_0 cache", "float16", "bfloat16, q8_0 cache"],
)
def target(request: pytest.FixtureRequest) -> Target:
    dtype, kv_cache = request.param
    return Target(BACKEND, ExecutorOptions(dtype=dtype, kv_cache=kv_cache), share=7)
