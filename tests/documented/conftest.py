"""What all tests of the documented API need."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models here are so small that torch's threads only wait for each other, above all beside pytest's processes."""
    torch.set_num_threads(1)
