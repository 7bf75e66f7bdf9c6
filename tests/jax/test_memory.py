"""Failures of memory and of devices: one line, and a program that goes on where it can."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from mistral_portable_jax import BACKEND

from mistral_portable.boundary import ExecutorOptions, load_lane, prepare, save_lane
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError, CapacityError
from mistral_portable.graph import build, verify
from mistral_portable.testing import random_weights

CONFIG = MistralConfig(
    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)
GRAPH = verify(build(CONFIG))
SPEC = CacheSpec.from_config(CONFIG, max_context=16, page_size=4, max_lanes=4)


def exhausted(*arguments: Any) -> Any:
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.\nAllocations: ...")


def prepared() -> Any:
    return prepare(BACKEND, GRAPH, random_weights(GRAPH, 1), SPEC, ExecutorOptions())


def test_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.numpy.asarray", exhausted)
    with pytest.raises(
        CapacityError, match=r"the model, 0.00 GB .*, does not fit: .* \(RESOURCE_EXHAUSTED: .* bytes.\)$"
    ):
        prepared()


def step(program: Any, manager: CacheManager, lane: int, tokens: list[int]) -> Any:
    """Logits of one step of one sequence; the plan is undone where it fails."""
    plan = manager.plan([Chunk(lane, tokens, range(len(tokens)))])
    try:
        return program.step(plan)["logits"]
    except BaseException:
        manager.undo(plan)
        raise


def test_a_step_that_fails_before_it_takes_the_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program, manager = prepared(), CacheManager(SPEC)
    alone, its = prepared(), CacheManager(SPEC)
    lane, other = manager.open(), its.open()
    step(program, manager, lane, [1, 2])
    step(alone, its, other, [1, 2])
    with monkeypatch.context() as patched:
        patched.setattr(program, "_step", exhausted)
        with pytest.raises(CapacityError, match=r"a step of 2 tokens does not fit: use shorter chunks.* bytes.\)$"):
            step(program, manager, lane, [3, 4])
    np.testing.assert_array_equal(step(program, manager, lane, [3, 4]), step(alone, its, other, [3, 4]))


def test_a_step_that_fails_with_the_cache_loses_the_lanes_and_not_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that begin anew work; those that go on are refused, with the remedy, until they begin anew."""
    program, manager = prepared(), CacheManager(SPEC)
    first, second = manager.open(), manager.open()
    expected = step(program, manager, first, [1, 2])
    going_on = step(program, manager, first, [3, 4])
    step(program, manager, second, [5])

    def exhausted_later(weights: Any, cache: Any, inputs: Any) -> Any:
        for array in cache.values():
            array.delete()
        exhausted()

    with monkeypatch.context() as patched:
        patched.setattr(program, "_step", exhausted_later)
        with pytest.raises(CapacityError, match=r"a step of 1 tokens \(all sequences .* start again\) does not fit"):
            step(program, manager, first, [6])
    lost = r"its keys and values were lost .*: run the sequence again from its first token"
    fork = manager.fork(second)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: step(program, manager, second, [7]),
        lambda: step(program, manager, fork, [7]),
        lambda: program.read_pages(0, manager.pages(second)[0]),
    )
    for call, subject in zip(calls, ("lane 1: ", "lane 2: ", "page 1: "), strict=True):
        with pytest.raises(CapacityError, match=subject + lost):
            call()
    manager.rollback(first, 0)
    np.testing.assert_array_equal(step(program, manager, first, [1, 2]), expected)
    with pytest.raises(CapacityError, match=lost):
        step(program, manager, second, [7])
    manager.close(second)
    manager.close(fork)
    second = manager.fork(first)
    for lane in (first, second):
        np.testing.assert_array_equal(step(program, manager, lane, [3, 4]), going_on)
    program.read_pages(0, manager.pages(second)[0])


def test_a_device_that_fails_is_not_a_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise jax.errors.JaxRuntimeError("INTERNAL: the device is gone")

    program, manager = prepared(), CacheManager(SPEC)
    monkeypatch.setattr(program, "_step", broken)
    with pytest.raises(BackendError, match=r"device failed \(INTERNAL: the device is gone\); load the model again"):
        step(program, manager, manager.open(), [1])


def test_growth_that_fails_halfway_leaves_lanes_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers may then have pools of different sizes: steps, saving and loading do not mind."""
    config = replace(CONFIG, num_hidden_layers=2)
    graph = verify(build(config))
    spec = CacheSpec.from_config(config, max_context=128, page_size=4, max_lanes=4)
    program = prepare(BACKEND, graph, random_weights(graph, 1), spec, ExecutorOptions())
    alone = prepare(BACKEND, graph, random_weights(graph, 1), spec, ExecutorOptions())
    manager, its = CacheManager(spec), CacheManager(spec)
    lane, other = manager.open(), its.open()
    step(program, manager, lane, [1, 2])
    step(alone, its, other, [1, 2])
    pad, grown = jax.numpy.pad, []

    def twice(*arguments: Any) -> Any:
        grown.append(arguments)
        return pad(*arguments) if len(grown) < 4 else exhausted()

    with monkeypatch.context() as patched:
        patched.setattr("jax.numpy.pad", twice)
        with pytest.raises(CapacityError, match="a cache of 128 positions does not fit"):
            step(program, manager, lane, [3] * 70)
    np.testing.assert_array_equal(step(program, manager, lane, [3]), step(alone, its, other, [3]))
    its.close(other)
    other = load_lane(alone, its, save_lane(program, manager, lane))
    np.testing.assert_array_equal(step(program, manager, lane, [4] * 70), step(alone, its, other, [4] * 70))


@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
def test_a_platform_that_is_not_there(platform: str) -> None:
    if platform == "cuda" and any(device.platform == "gpu" for device in jax.devices()):
        platform = "rocm"
    command = [sys.executable, "-m", "mistral_portable", "run", "Once", "--backend", "jax"]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": platform}, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: JAX_PLATFORMS='{platform}': no device can be used" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
