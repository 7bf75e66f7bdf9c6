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

from mistral_portable.boundary import ExecutorOptions, FunctionalBackend, SavedLane, load_lane, prepare, save_lane
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
    spec = CacheSpec.from_config(
        CONFIG, **{"max_context": 64, "page_size": 32, "max_chunk": 32, "max_lanes": 4, **sizes}
    )
    program = prepare(BACKEND, GRAPH, random_weights(GRAPH, 1), spec, ExecutorOptions(dtype=dtype))
    return program, CacheManager(spec)


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


def test_decoded_tokens_are_compiled_again_when_pages_double() -> None:
    """Tables of 2, 4, 8, 16 pages, with pools of 4, 4, 8, 16; the window always has 2 and 4."""
    program, manager = prepared(page_size=4)
    lane, traces = manager.open(), []
    for _ in range(60):
        program.step(manager.plan([Chunk(lane, [1], [0])]))
        traces.append(program.traces)
    assert [traces.index(count) for count in range(1, traces[-1] + 1)] == [0, 8, 16, 32]


def test_memory_is_constant_once_lanes_are_there() -> None:
    program, manager = prepared()
    lanes = [manager.open() for _ in range(2)]
    program.step(manager.plan([Chunk(lane, [1, 2], [1]) for lane in lanes]))
    held = program.cache_bytes
    assert held == 2 * 2 * 4 * 32 * 8 * 4  # keys and values of 2 layers, in 4 pages of 32 slots
    for _ in range(50):  # each lane then has two pages in each layer
        program.step(manager.plan([Chunk(lane, [3], [0]) for lane in lanes]))
    assert program.cache_bytes == held


def test_pools_that_grow_keep_what_they_hold() -> None:
    """They grow from 4 pages to 32 and to 64; the other program has a page for each lane, four from the beginning."""

    def run(page_size: int) -> tuple[list[Any], list[int]]:
        program, manager = prepared(page_size=page_size, max_context=256, max_chunk=64)
        lanes = [manager.open() for _ in range(3)]
        logits, held = [], []
        for size, some in ((9, lanes[:1]), (7, lanes), (30, lanes[:2]), (60, lanes[2:]), (60, lanes[:1])):
            chunks = [Chunk(lane, [(size * t + lane) % 30 for t in range(size)], [size - 1]) for lane in some]
            logits.append(program.step(manager.plan(chunks))["logits"])
            held.append(program.cache_bytes)
        return logits, held

    (found, grown), (expected, whole) = run(4), run(256)
    for mine, other in zip(found, expected, strict=True):
        # Not bit for bit: XLA sums over the slots of a lane's pages, in an order that depends on their number.
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)
    assert grown == sorted(grown)
    assert len(set(grown)) == 4
    assert len(set(whole)) == 1


def test_a_fork_copies_the_page_that_it_writes_and_no_other() -> None:
    program, manager = prepared(page_size=4)
    lane = manager.open()
    program.step(manager.plan([Chunk(lane, list(range(10)), [])]))
    fork = manager.fork(lane)
    pages, before = manager.pages(lane), [program.read_pages(group, manager.pages(lane)[group]) for group in range(2)]
    found = program.step(manager.plan([Chunk(fork, [7], [0])]))["logits"]
    np.testing.assert_array_equal(program.step(manager.plan([Chunk(lane, [7], [0])]))["logits"], found)
    for group, state in enumerate(before):
        assert manager.pages(fork)[group][:-1] == pages[group][-len(manager.pages(fork)[group]) : -1]
        for name, array in program.read_pages(group, pages[group]).items():
            np.testing.assert_array_equal(array, state[name])  # both have written to copies
        for name, array in program.read_pages(group, manager.pages(fork)[group][-1:]).items():
            np.testing.assert_array_equal(array[0, :2], state[name][-1, :2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lane_goes_on_in_another_program(dtype: str, tmp_path: Any) -> None:
    """The lane is saved to a file and loaded into a program with a different number of lanes."""
    program, manager = prepared(dtype, page_size=8)
    lane = manager.open()
    program.step(manager.plan([Chunk(lane, list(range(20)), [])]))
    saved = save_lane(program, manager, lane)
    for group, state in enumerate(saved.groups):
        np.savez(tmp_path / f"{group}.npz", **dict(state))  # type: ignore[arg-type]
    expected = program.step(manager.plan([Chunk(lane, [7], [0])]))["logits"]
    other, its = prepared(dtype, page_size=8, max_lanes=2)
    its.open()
    groups = tuple(dict(np.load(tmp_path / f"{group}.npz")) for group in range(2))
    second = load_lane(other, its, SavedLane(saved.integers, groups))
    np.testing.assert_array_equal(other.step(its.plan([Chunk(second, [7], [0])]))["logits"], expected)


def test_a_lane_saved_before_its_first_step_is_empty() -> None:
    program, manager = prepared()
    saved = save_lane(program, manager, manager.open())
    assert saved.nbytes == 0
    lane = load_lane(program, manager, saved)
    assert np.isfinite(program.step(manager.plan([Chunk(lane, [1], [0])]))["logits"]).all()


def test_pages_that_do_not_fit_are_refused_and_change_nothing() -> None:
    program, manager = prepared()
    lane = manager.open()
    program.step(manager.plan([Chunk(lane, [1, 2, 3], [2])]))
    state = dict(program.read_pages(0, [0]))
    for wrong in (
        {"keys.0": state["keys.0"]},
        {**state, "keys.0": state["keys.0"].astype(np.float64)},
        {**state, "keys.0": state["keys.0"][:, :1]},
        {**state, "values.0": np.repeat(state["values.0"], 2, axis=0)},
        {**state, "values.0": state["values.0"][..., :4]},
        program.read_pages(1, [0]),
    ):
        with pytest.raises(CacheError, match="the saved lane"):
            program.write_pages(0, [0], wrong)
    for name, array in program.read_pages(0, [0]).items():
        np.testing.assert_array_equal(array, state[name])


def test_a_cache_for_which_there_is_no_memory_is_refused() -> None:
    """The keys take 2^48 bytes, more than a process can address."""
    config = replace(CONFIG, head_dim=2**16, num_attention_heads=1, sliding_window=None, num_hidden_layers=1)
    graph = verify(build(config))
    spec = CacheSpec.from_config(config, max_context=2**30, page_size=2**30, max_chunk=32)
    program = prepare(BACKEND, graph, random_weights(graph, 1), spec, ExecutorOptions())
    manager = CacheManager(spec)
    with pytest.raises(CapacityError, match="a cache of 1073741824 positions does not fit: use fewer sequences"):
        program.step(manager.plan([Chunk(manager.open(), [1], [0])]))


def test_what_an_earlier_text_left_in_a_page_means_nothing() -> None:
    """Even NaN in slots of an earlier text changes nothing, also where queries of padding are at their positions."""
    program, manager = prepared()
    lanes = [manager.open(), manager.open()]
    program.step(manager.plan([Chunk(lane, [1, 2, 3], []) for lane in lanes]))
    for group in range(2):
        state = program.read_pages(group, [0, 1])
        program.write_pages(group, [0, 1], {name: np.full_like(array, np.nan) for name, array in state.items()})
    for lane in lanes:
        manager.rollback(lane, 0)
    clean, its = prepared()
    others = [its.open(), its.open()]
    # The rows of padding beside the second sequence stand for the first one's token at position 8.
    for chunks in ([(0, list(range(8)))], [(0, list(range(8))), (1, [4, 5])]):
        found = program.step(manager.plan([Chunk(lanes[s], tokens, [0, 1]) for s, tokens in chunks]))["logits"]
        expected = clean.step(its.plan([Chunk(others[s], tokens, [0, 1]) for s, tokens in chunks]))["logits"]
        np.testing.assert_array_equal(found, expected)


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
    state = program.read_pages(0, [0])
    program.close()
    program.close()
    calls: tuple[Callable[[], Any], ...] = (
        lambda: program.step(plan),
        lambda: program.read_pages(0, [0]),
        lambda: program.write_pages(0, [0], state),
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
    spec = CacheSpec.from_config(CONFIG, max_context=64, page_size=32)
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
            CacheSpec.from_config(config, max_context=8, page_size=32),
            ExecutorOptions(dtype="bfloat16"),
        )
