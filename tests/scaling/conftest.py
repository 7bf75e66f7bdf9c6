"""One Ray at a time."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

_PATIENCE = 480  # seconds, in which others have ended their tests with Ray


@pytest.fixture
def alone() -> Iterator[None]:
    """Each Ray needs half a dozen processes: one at a time, whatever process of pytest asks for it."""
    with FileLock(Path(tempfile.gettempdir()) / "mistral-portable-tests-ray.lock", timeout=_PATIENCE):
        yield
