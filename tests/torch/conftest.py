"""Fixtures that tests of the torch executor share."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Steps here are so small that threads only wait for each other, above all beside other processes of pytest."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def untraced_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `torch.compile`, FlexAttention traces itself for every shape, seconds each, unless told not to."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.fixture
def few_examples() -> Iterator[None]:
    """A sixteenth of the examples: there are several kernels, and every example has its oracle.

    Always the same ones: MKL adds up the float32 products of a few dozen columns one after the other, which is honest,
    but of some 5,000 small cases one then exceeds a limit that other orders of summation have set.
    """
    before = settings.default
    assert before is not None
    few = max(1, before.max_examples // 16)
    settings.register_profile("few", before, max_examples=few, derandomize=True, database=None)
    settings.load_profile("few")
    yield
    settings.register_profile("before", before)
    settings.load_profile("before")
