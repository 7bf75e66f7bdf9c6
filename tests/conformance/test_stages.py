"""Models that are cut at every layer, on the reference: the bits of the whole model, whatever the cut."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_portable.boundary import ExecutorOptions, PipelinedProgram, load_lane, save_lane
from mistral_portable.boundary.program import Program
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CacheError, ClosedError, InputError
from mistral_portable.graph import build
from mistral_portable.graph.passes import accept_embeddings, expose_attention_weights, expose_hidden_states, select_rows
from mistral_portable.reference import BACKEND
from mistral_portable.testing import Case, random_weights
from mistral_portable.testing.stages import StagedBackend, difference_from_whole
from mistral_portable.testing.strategies import model_cases, scenarios

CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    sliding_window=(3, None),
)
SPEC = CacheSpec.from_config(CONFIG, max_context=64, page_size=4, max_lanes=4)


@given(case=model_cases(sequences=3, rollback=True, rows=True, fork=True))
def test_stages_have_the_bits_of_the_whole(case: Case) -> None:
    """Windows 1..8, texts up to four of them, chunks, rollbacks and forks."""
    assert not difference_from_whole(case, BACKEND, ExecutorOptions())


@settings(max_examples=20)  # one config: only texts differ
@given(scenario=scenarios(40, sequences=2, embeds=True))
def test_all_outputs_come_through_the_stages(scenario: Any) -> None:
    graph = accept_embeddings(expose_attention_weights(expose_hidden_states(build(CONFIG))))
    case = Case("all outputs", CONFIG, graph, random_weights(graph, 0), scenario)
    assert not difference_from_whole(case, BACKEND, ExecutorOptions())


GRAPH = select_rows(build(CONFIG), "logits")
WEIGHTS = random_weights(GRAPH, 1)


def prepared(backend: Any) -> Program:
    program: Program = backend.prepare(GRAPH, WEIGHTS, SPEC, ExecutorOptions(dtype="float32"))
    return program


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_steps_that_have_begun_end_in_any_order(lengths: list[int]) -> None:
    """Steps of different sequences are begun one after another, and read from the last one to the first."""
    whole, staged = prepared(BACKEND), prepared(StagedBackend(BACKEND))
    assert isinstance(staged, PipelinedProgram)
    assert staged.depth == 3
    manager = CacheManager(CacheSpec.from_config(CONFIG, max_context=64, page_size=4, max_lanes=5))
    plans = [manager.plan([Chunk(manager.open(), range(length), rows=[length - 1])]) for length in lengths]
    begun = [staged.begin(plan) for plan in plans]
    expected = [whole.step(plan)["logits"] for plan in plans]
    for step, logits in reversed(list(zip(begun, expected, strict=True))):
        np.testing.assert_array_equal(step.outputs()["logits"], logits)


@pytest.mark.parametrize(("source", "target"), [(BACKEND, StagedBackend(BACKEND)), (StagedBackend(BACKEND), BACKEND)])
def test_sequences_move_between_stages_and_the_whole(source: Any, target: Any) -> None:
    """Saved in one, a text goes on in the other; it is longer than two windows."""
    before, after = prepared(source), prepared(target)
    manager, other = CacheManager(SPEC), CacheManager(SPEC)
    lane = manager.open()
    before.step(manager.plan([Chunk(lane, range(9))]))
    moved = load_lane(after, other, save_lane(before, manager, lane))
    expected = before.step(manager.plan([Chunk(lane, [1, 2], rows=[0, 1])]))["logits"]
    found = after.step(other.plan([Chunk(moved, [1, 2], rows=[0, 1])]))["logits"]
    np.testing.assert_array_equal(found, expected)
    assert sum(before.slot_bytes(group) for group in (0, 1)) == sum(after.slot_bytes(group) for group in (0, 1))
    assert after.cache_bytes > 0


def test_pages_of_other_layers_are_refused() -> None:
    program = prepared(StagedBackend(BACKEND))
    manager = CacheManager(SPEC)
    program.step(manager.plan([Chunk(manager.open(), range(3))]))
    pages = dict(program.read_pages(0, [0]))
    assert set(pages) == {"keys.0", "values.0", "keys.2", "values.2"}
    for name in ("keys.1", "keys", "keys.x"):
        with pytest.raises(CacheError, match=f"holds .*{name}.*not the layers of this model"):
            program.write_pages(0, [0], {**pages, name: pages["keys.0"]})
    with pytest.raises(CacheError, match="not the layers"):
        program.write_pages(0, [0], {name: array for name, array in pages.items() if name != "keys.2"})


def test_inputs_that_no_stage_takes_are_refused() -> None:
    """Also the hidden states that pass between stages: they are no input of the whole."""
    program, manager = prepared(StagedBackend(BACKEND)), CacheManager(SPEC)
    plan = manager.plan([Chunk(manager.open(), [1])])
    for name in ("nobody", "layers.0.output"):
        with pytest.raises(InputError, match=name):
            program.step(plan, {name: np.zeros((1, 16), np.float32)})
    assert program.step(plan)["logits"].shape == (0, 40)


def test_closed_stages_take_no_steps() -> None:
    program, manager = prepared(StagedBackend(BACKEND)), CacheManager(SPEC)
    plan = manager.plan([Chunk(manager.open(), [1])])
    program.close()
    program.close()
    with pytest.raises(ClosedError):
        program.step(plan)
    with pytest.raises(ClosedError):
        _ = program.cache_bytes
