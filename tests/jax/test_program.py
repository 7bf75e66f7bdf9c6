"""JAXProgram beyond the ladder: float types, compilations, lanes, refusals, Ctrl-C, forks, an installed package."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mistral_portable_jax import BACKEND

from mistral_portable.boundary import ExecutorOptions, FunctionalBackend, prepare
from mistral_portable.boundary.registry import candidates, select
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError, CacheError, CapacityError, ClosedError
from mistral_portable.graph import build, verify
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing import random_weights
from mistral_portable.testing.case import Case, check
from mistral_portable.testing.suite import RUNGS

CONFIG = MistralConfig(
    vocab_size=30,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=(4, None),
)
GRAPH = verify(select_rows(build(CONFIG), "logits"))


def prepared(dtype: str = "float32", **sizes: int) -> tuple[Any, CacheManager]:
    spec = CacheSpec.from_config(CONFIG, **{"max_context": 64, "max_chunk": 32, "max_lanes": 4, **sizes})
    return prepare(BACKEND, GRAPH, random_weights(GRAPH, 1), spec, ExecutorOptions(dtype=dtype)), CacheManager(
        spec, block=64
    )


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("rung", ["ragged", "op.moe", "op.rope"])
@settings(max_examples=2, derandomize=True, database=None, phases=[Phase.generate])
@given(data=st.data())
def test_other_types_on_rungs_of_the_ladder(rung: str, dtype: str, data: st.DataObject) -> None:
    """Three rungs are enough: the code is the same, and float32 and bfloat16 climb the whole ladder."""
    case: Case = data.draw(RUNGS[rung])
    result = check(case, BACKEND, ExecutorOptions(dtype=dtype))
    assert result.status == "pass", result


def test_float64_is_this_programs_alone() -> None:
    program, manager = prepared("float64")
    logits = program.step(manager.plan([Chunk(manager.open(), [1, 2, 3], [2])]))["logits"]
    assert logits.dtype == np.float64
    assert jax.numpy.ones(1, float).dtype == np.float32


def test_steps_of_about_the_same_size_are_compiled_once() -> None:
    """Prompts of 2 to 16 tokens share a compiled step, and so do all decoded tokens, across the window."""
    program, manager = prepared()
    for length in (2, 9, 16):
        lane = manager.open()
        program.step(manager.plan([Chunk(lane, list(range(length)), [length - 1])]))
        manager.close(lane)
    assert program.traces == 1
    lane = manager.open()
    for token in range(20):
        program.step(manager.plan([Chunk(lane, [token], [0])]))
    assert program.traces == 2
    program.step(manager.plan([Chunk(lane, list(range(17)), [])]))
    assert program.traces == 3


def test_memory_is_constant_once_lanes_are_there() -> None:
    program, manager = prepared()
    lanes = [manager.open() for _ in range(2)]
    program.step(manager.plan([Chunk(lane, [1, 2], [1]) for lane in lanes]))
    held = program.cache_bytes
    windowed, full = 4 + 32 - 1, 64
    assert held == 2 * 2 * (windowed + full) * 8 * 4
    for _ in range(50):
        program.step(manager.plan([Chunk(lane, [3], [0]) for lane in lanes]))
    assert program.cache_bytes == held


def test_lanes_that_grow_keep_what_they_hold() -> None:
    """Lanes grow in number, and in slots from 64 to 256; the other program has 256 slots from the beginning."""
    sizes: Any = {"max_context": 256, "max_chunk": 64, "max_lanes": 4}

    def run(block: int) -> tuple[list[Any], list[int]]:
        program, manager = prepared(**sizes)[0], CacheManager(CacheSpec.from_config(CONFIG, **sizes), block=block)
        lanes = [manager.open() for _ in range(3)]
        logits, held = [], []
        for size, some in ((40, lanes[:1]), (7, lanes), (30, lanes[:2]), (60, lanes[2:]), (60, lanes[:1])):
            chunks = [Chunk(lane, [(size * t + lane) % 30 for t in range(size)], [size - 1]) for lane in some]
            logits.append(program.step(manager.plan(chunks))["logits"])
            held.append(program.cache_bytes)
        return logits, held

    (found, grown), (expected, whole) = run(64), run(256)
    for mine, other in zip(found, expected, strict=True):
        # Not bit for bit: XLA sums over the slots of a lane, in an order that depends on their number.
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)
    assert len(set(grown)) == 4
    assert grown[-1] == whole[-1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lane_goes_on_in_another_program(dtype: str, tmp_path: Any) -> None:
    """The lane is saved to a file and loaded into a program with a different number of lanes."""
    program, manager = prepared(dtype)
    lane = manager.open()
    program.step(manager.plan([Chunk(lane, list(range(20)), [])]))
    np.savez(tmp_path / "lane.npz", **program.save_lane(lane))
    integers = manager.save(lane)
    expected = program.step(manager.plan([Chunk(lane, [7], [0])]))["logits"]
    other, its = prepared(dtype, max_lanes=2)
    second = [its.open(), its.load(integers)][1]
    other.load_lane(second, dict(np.load(tmp_path / "lane.npz")))
    np.testing.assert_array_equal(other.step(its.plan([Chunk(second, [7], [0])]))["logits"], expected)


def test_lanes_that_do_not_fit_are_refused_and_change_nothing() -> None:
    program, manager = prepared()
    lane = manager.open()
    program.step(manager.plan([Chunk(lane, [1, 2, 3], [2])]))
    state = dict(program.save_lane(lane))
    for wrong in (
        {"keys.0": state["keys.0"]},
        {**state, "keys.0": state["keys.0"].astype(np.float64)},
        {**state, "keys.0": state["keys.0"][:1]},
        {**state, "values.1": state["values.1"][:, :, :4]},
    ):
        with pytest.raises(CacheError, match="the saved lane"):
            program.load_lane(lane, wrong)
    for name, array in program.save_lane(lane).items():
        np.testing.assert_array_equal(array, state[name])


def test_a_cache_for_which_there_is_no_memory_is_refused() -> None:
    """The keys take 2^48 bytes, more than a process can address."""
    config = replace(CONFIG, head_dim=2**16, num_attention_heads=1, sliding_window=None, num_hidden_layers=1)
    graph = verify(build(config))
    spec = CacheSpec.from_config(config, max_context=2**30, max_chunk=32)
    program = prepare(BACKEND, graph, random_weights(graph, 1), spec, ExecutorOptions())
    manager = CacheManager(spec, block=2**30)
    with pytest.raises(CapacityError, match="does not fit: use fewer sequences"):
        program.step(manager.plan([Chunk(manager.open(), [1], [0])]))


def test_what_an_earlier_text_left_in_a_lane_means_nothing() -> None:
    """Even NaN in slots of an earlier text changes nothing."""
    program, manager = prepared()
    clean, its = prepared()
    lane, other = manager.open(), its.open()
    program.step(manager.plan([Chunk(lane, [1, 2, 3], [])]))
    program.load_lane(lane, {name: np.full_like(array, np.nan) for name, array in program.save_lane(lane).items()})
    manager.rollback(lane, 0)
    plans = manager.plan([Chunk(lane, [4, 5], [1])]), its.plan([Chunk(other, [4, 5], [1])])
    np.testing.assert_array_equal(program.step(plans[0])["logits"], clean.step(plans[1])["logits"])


def test_after_ctrl_c_a_program_goes_on() -> None:
    """Ctrl-C at any moment of a step keeps the cache: the step takes it and always gives it back."""
    program, manager = prepared()
    lane = manager.open()
    program.step(manager.plan([Chunk(lane, [1, 2, 3], [])]))
    expected = None
    for delay in np.linspace(0, 1e-3, 20).tolist():
        timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
        plan = manager.plan([Chunk(lane, [4], [0])])
        try:
            timer.start()
            program.step(plan)
            timer.join()
        except KeyboardInterrupt:
            pass
        timer.join()
        manager.rollback(lane, 3)
        logits = program.step(manager.plan([Chunk(lane, [4], [0])]))["logits"]
        manager.rollback(lane, 3)
        expected = logits if expected is None else expected
        np.testing.assert_array_equal(logits, expected)


def test_after_close_it_says_so() -> None:
    program, manager = prepared()
    lane = manager.open()
    plan = manager.plan([Chunk(lane, [1, 2], [1])])
    program.step(plan)
    state = program.save_lane(lane)
    program.close()
    program.close()
    calls: tuple[Callable[[], Any], ...] = (
        lambda: program.step(plan),
        lambda: program.save_lane(lane),
        lambda: program.load_lane(lane, state),
        lambda: program.copy_lane(lane, 1),
    )
    for call in calls:
        with pytest.raises(ClosedError, match="closed: prepare it again"):
            call()
    assert program.cache_bytes == program.scratch_bytes == 0


def test_a_forked_child_is_told_so() -> None:
    """The child has neither the program's thread nor XLA's, and a step would hang; the parent goes on."""
    script = """
import os, warnings
import numpy as np
import mistral_portable as mp
from mistral_portable.errors import BackendError
from mistral_portable.transformers import FlaxMistralModel
warnings.simplefilter("ignore")  # JAX's own, at the fork
model, flax = mp.load("tiny", backend="jax"), FlaxMistralModel.from_pretrained("tiny")
before = model.generate("Once", max_tokens=3, temperature=0).tokens
child = os.fork()
if child == 0:
    for call in (
        lambda: model.generate("Once", max_tokens=3),
        lambda: mp.load("tiny", backend="jax"),
        lambda: flax(np.array([[1, 2]])),
    ):
        try:
            call()
        except BackendError as error:
            print(error, flush=True)
    model.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert model.generate("Once", max_tokens=3, temperature=0).tokens == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("does not run in its forked child" in line for line in lines)


REFUSED = {
    "threads=2": ExecutorOptions(threads=2),
    "device='cpu'": ExecutorOptions(device="cpu"),
    "quantize='nf4'": ExecutorOptions(quantize="nf4"),
    "kv_cache='q8_0'": ExecutorOptions(kv_cache="q8_0"),
    "dtype='int8'": ExecutorOptions(dtype="int8"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_it_has_not_are_refused(message: str) -> None:
    spec = CacheSpec.from_config(CONFIG, max_context=64)
    with pytest.raises(BackendError, match=message):
        prepare(BACKEND, GRAPH, random_weights(GRAPH, 1), spec, REFUSED[message])


def test_it_is_found_and_never_chosen_by_itself() -> None:
    assert isinstance(select("jax"), FunctionalBackend)
    scores = {candidate.name: candidate.availability.score for candidate in candidates()}
    assert scores["reference"] < scores["jax"]
    assert all(scores["jax"] < scores[name] for name in ("numba", "torch", "mlx") if scores[name])
    assert select("auto").name != "jax"


def test_a_pure_function_in_float64_is_refused() -> None:
    with pytest.raises(BackendError, match="float64"):
        BACKEND.pure(verify(build(CONFIG)), "float64")


def test_as_it_is_installed() -> None:
    """A run with XLA's default settings gives the reference's text; listing backends does not import JAX."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "mistral_portable", "run", "Once upon a time", "--temperature", "0"]
    texts = [
        subprocess.run(
            [*command, "--max-tokens", "60", "--backend", backend],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        for backend in ("jax", "reference")
    ]
    assert texts[0] == texts[1]
    code = (
        "import sys; from mistral_portable.boundary.registry import candidates; candidates(); "
        "print('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_weights_that_are_unpacked_are_named() -> None:
    config = replace(CONFIG, hidden_size=32, intermediate_size=32, head_dim=16)
    graph = verify(build(config))
    with pytest.warns(UserWarning, match=r"16 matrices \(16 in q4_0\) are unpacked to bfloat16"):
        prepare(
            BACKEND,
            graph,
            random_weights(graph, 1, "q4_0"),
            CacheSpec.from_config(config, max_context=8),
            ExecutorOptions(dtype="bfloat16"),
        )
