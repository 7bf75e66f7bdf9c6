"""Fixtures for all tests of the documented API."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Run torch with one thread: models here are so small that more threads only wait for each other."""
    try:
        from torch import set_num_threads
    except ImportError:  # it has no part in some of these tests, which then run without it
        return
    set_num_threads(1)
