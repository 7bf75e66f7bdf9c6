"""Checks that need a CUDA GPU: the conformance ladder on the real kernels, recorded steps, memory."""

from typing import Any

import numpy as np
import pytest
import torch
from mistral_portable_torch import BACKEND
from mistral_portable_torch.obstacles import KERNELS, obstacle

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions
from mistral_portable.testing.suite import Target, test_conformance, test_greedy

__all__ = ["test_conformance", "test_greedy"]

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU: tools/torch_on_cuda runs it", allow_module_level=True)


# The ladder's head_dim is 2 to 40, which flash kernels do not take: `verify` and the test below check those.
@pytest.fixture(params=["sdpa", "flex", "eager"])
def kernel(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def target(request: pytest.FixtureRequest, kernel: str) -> Target:
    return Target(BACKEND, ExecutorOptions(dtype=request.param, device="cuda", attention=kernel), share=16)


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_agree_over_two_windows(name: str) -> None:
    """The embedded model, window 64, in prefill chunks of 50 and in single tokens."""
    capability = torch.cuda.get_device_capability()
    if reason := obstacle(name, "cuda", capability, "bfloat16", 32):
        pytest.skip(reason)
    with mp.load("tiny", backend="torch", device="cuda", dtype="bfloat16", attention="eager") as plain:
        tokens = plain.tokenizer.encode("Once upon a time there was a girl who had a dog. " * 14)
        expected = plain.logits(tokens, chunk=50)
    with mp.load("tiny", backend="torch", device="cuda", dtype="bfloat16", attention=name) as model:
        for chunk in (50, 1):
            error = np.abs(model.logits(tokens, chunk=chunk) - expected).max()
            assert error <= 0.05 * np.abs(expected).max()


def test_tiny_writes_the_reference_s_story_by_recorded_steps() -> None:
    expected = mp.load("tiny", backend="reference").generate("Once upon a time", max_tokens=200, temperature=0)
    with mp.load("tiny", backend="torch", device="cuda", dtype="float32") as model:
        assert model.generate("Once upon a time", max_tokens=200, temperature=0).tokens == expected.tokens


def test_texts_that_the_device_draws_are_those_of_the_sampler() -> None:
    """Log-probabilities are made by the host, and so are tokens then."""
    with mp.load("tiny", backend="torch", device="cuda", dtype="float32") as model:
        choices: list[dict[str, Any]] = [{}, {"top_k": 20}, {"top_p": 0.9, "temperature": 1.3}, {"min_p": 0.05}]
        for seed, rules in enumerate(choices):
            options: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True, "seed": seed, **rules}
            by_host = model.generate("Once upon a time", logprobs=0, **options).tokens
            assert model.generate("Once upon a time", **options).tokens == by_host


def test_memory_is_constant_once_the_window_is_full() -> None:
    with mp.load("tiny", backend="torch", device="cuda") as model:
        model.generate("Once upon a time", max_tokens=700, temperature=0, ignore_eos=True)
        held = model.program.cache_bytes, torch.cuda.memory_allocated()
        model.generate("Once upon a time", max_tokens=1500, temperature=0, ignore_eos=True)
        assert (model.program.cache_bytes, torch.cuda.memory_allocated()) == held
