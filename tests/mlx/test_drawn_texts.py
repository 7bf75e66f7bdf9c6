"""Texts that MLX's device draws are the host's; shared tests, see `drawn_texts.py`."""

from collections.abc import Iterator

import mistral_portable_mlx.choosing
import mistral_portable_mlx.program as mlx_executor
import mlx.core as mx
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
    mx.disable_compile()  # a compiled step would keep the margin with which it was recorded
    try:
        with pytest.MonkeyPatch.context() as patch:  # on a CPU, as on a GPU
            patch.setattr(mlx_executor, "MLXProgram", mlx_executor.DrawingMLXProgram)
            with mp.load("tiny", backend="mlx", dtype="float32", max_lanes=2) as model:
                yield model
    finally:
        mx.enable_compile()


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Leave:
    return lambda share: monkeypatch.setattr(mistral_portable_mlx.choosing, "_OFF", share / 2)


@pytest.fixture
def margin() -> float:
    return 0.1
