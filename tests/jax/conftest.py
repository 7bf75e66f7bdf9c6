"""Fixtures for tests of the JAX executor."""

from collections.abc import Iterator

import pytest
from hypothesis import settings


@pytest.fixture
def few_examples() -> Iterator[None]:
    """Run a twenty-fifth of the examples: each has steps of several shapes, and XLA compiles every shape.

    The examples are always the same: with so few, chance would decide which features are checked.
    """
    before = settings.default
    assert before is not None
    few = max(1, before.max_examples // 25)
    settings.register_profile("few", before, max_examples=few, derandomize=True, database=None)
    settings.load_profile("few")
    yield
    settings.register_profile("before", before)
    settings.load_profile("before")
