"""Settings that tests of the torch executor share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: steps here are so small that threads only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def untraced_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep FlexAttention from tracing itself for every shape, which takes seconds, where nothing is compiled."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
