"""Fixtures that tests of the JAX executor share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings


@pytest.fixture
def few_examples() -> Iterator[None]:
    """A twenty-fifth of the examples: every one has steps of several shapes, and each is compiled, in half a second.

    Always the same ones, as for torch: with so few, chance would decide what is checked.
    """
    before = settings.default
    assert before is not None
    few = max(1, before.max_examples // 25)
    settings.register_profile("few", before, max_examples=few, derandomize=True, database=None)
    settings.load_profile("few")
    yield
    settings.register_profile("before", before)
    settings.load_profile("before")
