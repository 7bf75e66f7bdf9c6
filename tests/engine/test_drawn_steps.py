"""Texts that torch's device draws are the host's; shared tests, see `drawn_texts.py`."""

from collections.abc import Iterator

import mistral_portable_torch.choosing
import mistral_portable_torch.program as torch_executor
import pytest
from drawn_texts import (
    Leave,
    drawn,
    test_a_step_with_rules_that_a_device_does_not_know_is_the_host_s,
    test_a_text_is_drawn_by_steps_that_follow_each_other,
    test_rows_that_are_left_to_the_sampler_change_nothing,
    test_who_ends_by_a_token_that_was_left_to_the_sampler,
)

import mistral_portable as mp

__all__ = [
    "drawn",
    "test_a_step_with_rules_that_a_device_does_not_know_is_the_host_s",
    "test_a_text_is_drawn_by_steps_that_follow_each_other",
    "test_rows_that_are_left_to_the_sampler_change_nothing",
    "test_who_ends_by_a_token_that_was_left_to_the_sampler",
]


@pytest.fixture(scope="module")
def model() -> Iterator[mp.Model]:
    with pytest.MonkeyPatch.context() as patch:  # on a CPU, as on a GPU
        patch.setattr(torch_executor, "TorchProgram", torch_executor.DrawingTorchProgram)
        with mp.load("tiny", backend="torch", dtype="float32", max_lanes=2) as model:
            yield model


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Leave:
    return lambda share: monkeypatch.setattr(mistral_portable_torch.choosing, "_margin", lambda count: share)


@pytest.fixture(params=[0.01, 0.2])
def margin(request: pytest.FixtureRequest) -> float:
    share: float = request.param
    return share
