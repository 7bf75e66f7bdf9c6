"""Where there is no memory: one line, whatever XLA says."""

from typing import Any

import jax
import pytest
from mistral_portable_jax import BACKEND

from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError
from mistral_portable.executor import ExecutorOptions
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
    return BACKEND.prepare(GRAPH, random_weights(GRAPH, 1), SPEC, ExecutorOptions())


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
