"""Settings that tests of the torch executor share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Steps here are so small that threads only wait for each other, above all beside other processes of pytest."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def untraced_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `torch.compile`, FlexAttention traces itself for every shape, seconds each, unless told not to."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
