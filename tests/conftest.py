"""Settings that all tests share."""

import gc
import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the machines that run this are shared, and a slow example is not a wrong one.
settings.register_profile(
    "default", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare `--fresh-cases N`: the conformance ladder on N newly drawn cases instead of its corpus."""
    thorough = settings.get_profile("thorough").max_examples
    default = thorough if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 0
    parser.addoption(
        "--fresh-cases", type=int, default=default, metavar="N", help="new cases for each rung of the ladder"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Take what a file of tests leaves (modules, tokenizers, models) out of the collector's sight: it would look at
    millions of objects again and again in the files behind it, a fifth of their time."""
    done = yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
    return done


# NumPy's matrix products here are small: the threads of OpenBLAS would only wait for each other, above all beside other
# processes of pytest. Set here, as it is read once in a process, before any test file imports NumPy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# XLA's compiler takes most of the time of a test of the JAX executor, and half of that for speed that no test needs.
# Set here, as it is read once in a process, and before any test file imports JAX.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
