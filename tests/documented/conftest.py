"""What all tests of the documented API need."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models here are so small that torch's threads only wait for each other, above all beside pytest's processes."""
    try:
        from torch import set_num_threads
    except ImportError:  # it has no part in some of these tests, which then run without it
        return
    set_num_threads(1)
