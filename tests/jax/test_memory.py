"""Where there is no memory, or no device: one line, whatever XLA says."""

import os
import subprocess
import sys
from typing import Any

import jax
import pytest
from mistral_portable_jax import BACKEND

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError
from mistral_portable.graph import build, verify
from mistral_portable.testing import random_weights

CONFIG = MistralConfig(
    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)
GRAPH = verify(build(CONFIG))
SPEC = CacheSpec.from_config(CONFIG, max_context=16)


def exhausted(*arguments: Any) -> Any:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nAllocations: ...")


def prepared() -> Any:
    return prepare(BACKEND, GRAPH, random_weights(GRAPH, 1), SPEC, ExecutorOptions())


def test_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.numpy.asarray", exhausted)
    with pytest.raises(BackendError, match=r"the model does not fit: 0.00 GB .* \(RESOURCE_EXHAUSTED: .* bytes.\)$"):
        prepared()


def test_a_step_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    program, manager = prepared(), CacheManager(SPEC)
    plan = manager.plan([Chunk(manager.open(), [1, 2], [1])])
    monkeypatch.setattr(program, "_step", exhausted)
    with pytest.raises(BackendError, match=r"a step of 2 tokens failed.*prepare it again.* bytes.\)$"):
        program.step(plan)


@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
def test_a_platform_that_is_not_there(platform: str) -> None:
    if platform == "cuda" and any(device.platform == "gpu" for device in jax.devices()):
        platform = "rocm"
    command = [sys.executable, "-m", "mistral_portable", "run", "Once", "--backend", "jax"]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: JAX_PLATFORMS='{platform}': no device can be used" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
