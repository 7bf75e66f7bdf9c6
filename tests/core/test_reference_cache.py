"""The cache of the reference program: constant memory, forks, saved lanes, rollbacks, and no stale slot read."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, Program, SavedLane, load_lane, prepare, save_lane
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CacheError
from mistral_portable.graph import build
from mistral_portable.reference import BACKEND
from mistral_portable.testing import random_weights
from mistral_portable.testing.strategies import configs

WINDOW = 32
CONFIG = MistralConfig(
    vocab_size=20,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    sliding_window=WINDOW,
)
SLOT = 2 * 4 * 8  # bytes of a key and a value of one head of 4 float64 numbers


class Session:
    """A program in float64 with its cache manager."""

    def __init__(
        self,
        config: MistralConfig,
        *,
        max_context: int,
        max_chunk: int,
        max_lanes: int = 2,
        page_size: int | None = BACKEND.capabilities.page_size,
    ) -> None:
        graph = build(config)
        self.config = config
        self.spec = CacheSpec.from_config(
            config, max_context=max_context, page_size=page_size, max_chunk=max_chunk, max_lanes=max_lanes
        )
        self.manager = CacheManager(self.spec)
        self.program: Program = prepare(
            BACKEND, graph, random_weights(graph, 0), self.spec, ExecutorOptions(dtype="float64")
        )

    def feed(self, lane: int, tokens: list[int]) -> NDArray[Any]:
        """The logits of `tokens`, fed in chunks that fit."""
        size = self.spec.max_chunk
        chunks = [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]
        return np.concatenate([self.program.step(self.manager.plan([Chunk(lane, c)]))["logits"] for c in chunks])


def text(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length)]


def cache_bytes(config: MistralConfig, lengths: tuple[int, ...], page_size: int | None = 16) -> list[int]:
    """Bytes allocated for one lane when the text has each of these lengths."""
    session = Session(config, max_context=16 * WINDOW, max_chunk=16, page_size=page_size)
    lane, measured, length = session.manager.open(), [], 0
    for longer in lengths:
        session.feed(lane, text(longer - length))
        measured.append(session.program.cache_bytes)
        length = longer
    return measured


@pytest.mark.parametrize("page_size", [16, 5, None])
def test_a_windowed_lane_takes_the_same_bytes_however_long_the_text(page_size: int | None) -> None:
    spec = CacheSpec.from_config(CONFIG, max_context=16 * WINDOW, page_size=page_size, max_chunk=16)
    first, *later = cache_bytes(CONFIG, (3 * WINDOW, 4 * WINDOW, 16 * WINDOW), page_size)
    assert later == [first, first]
    assert first <= spec.lane_bytes(8)


def test_a_ring_takes_its_bytes_at_once() -> None:
    ring = 2 * (WINDOW + 16 - 1) * SLOT
    assert cache_bytes(CONFIG, (1, WINDOW, 16 * WINDOW), None) == [ring, ring, ring]


def test_a_full_lane_grows_with_the_text() -> None:
    full = CONFIG.with_window(None)
    assert cache_bytes(full, (1, 16, 17, 16 * WINDOW)) == [2 * slots * SLOT for slots in (16, 16, 32, 16 * WINDOW)]


def test_forks_take_bytes_for_what_they_do_not_share() -> None:
    session = Session(CONFIG.with_window(None), max_context=64, max_chunk=8)
    lane = session.manager.open()
    session.feed(lane, text(40))
    fork = session.manager.fork(lane)
    assert session.program.cache_bytes == 3 * session.spec.page_bytes(0, 8)
    session.feed(fork, text(1))  # the third page is copied
    assert session.program.cache_bytes == 4 * session.spec.page_bytes(0, 8)


@st.composite
def sessions(draw: st.DrawFn) -> tuple[Session, list[int]]:
    """A session and a text of 1 .. 30 tokens for it, which pass most windows."""
    config = draw(configs(max_layers=2))
    tokens = draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=30))
    page_size = draw(st.sampled_from([1, 2, 3, 4, 5, 16, None]))
    return Session(config, max_context=40, max_chunk=draw(st.integers(1, 9)), page_size=page_size), tokens


@given(sessions(), st.integers(0, 9))
def test_logits_after_a_rollback_are_those_of_a_fresh_run(drawn: tuple[Session, list[int]], back: int) -> None:
    session, tokens = drawn
    lane, fresh = session.manager.open(), session.manager.open()
    wrong = [(token + 1) % session.config.vocab_size for token in tokens[-min(back, session.spec.max_chunk) :]]
    keep = len(tokens) - len(wrong)
    for part in (tokens[:keep], wrong):
        if part:
            session.feed(lane, part)
    session.manager.rollback(lane, keep)
    expected = session.feed(fresh, tokens)[keep:]
    np.testing.assert_allclose(session.feed(lane, tokens[keep:]), expected, rtol=0, atol=1e-12)


@given(sessions())
def test_a_fork_and_its_source_go_on_alike_and_apart(drawn: tuple[Session, list[int]]) -> None:
    session, tokens = drawn
    lane = session.manager.open()
    session.feed(lane, tokens)
    fork = session.manager.fork(lane)
    once = session.feed(lane, tokens[:9])
    np.testing.assert_array_equal(session.feed(fork, tokens[:9]), once)


@given(sessions(), st.integers(0, 9))
def test_a_shorter_fork_is_a_rollback(drawn: tuple[Session, list[int]], back: int) -> None:
    session, tokens = drawn
    lane = session.manager.open()
    session.feed(lane, tokens)
    length = max(0, len(tokens) - min(back, (len(tokens) - 1) % session.spec.max_chunk + 1))
    fork = session.manager.fork(lane, length)
    other = [(token + 1) % session.config.vocab_size for token in tokens[:9]]
    expected = session.feed(fork, other)
    session.manager.rollback(lane, length)
    np.testing.assert_array_equal(session.feed(lane, other), expected)


@given(sessions())
def test_a_plan_whose_step_never_ran_leaves_no_trace(drawn: tuple[Session, list[int]]) -> None:
    session, tokens = drawn
    lane, fresh = session.manager.open(), session.manager.open()
    session.feed(lane, tokens)
    session.feed(fresh, tokens)
    session.manager.undo(session.manager.plan([Chunk(lane, tokens[:1])]))
    np.testing.assert_array_equal(session.feed(lane, tokens[:9]), session.feed(fresh, tokens[:9]))


@given(sessions())
def test_pages_of_closed_lanes_are_never_read(drawn: tuple[Session, list[int]]) -> None:
    """The program fills slots that nothing was written to with NaN; those of a closed lane are poisoned here."""
    session, tokens = drawn
    lane = session.manager.open()
    before = session.feed(lane, tokens)
    for group, pages in enumerate(session.manager.pages(lane)):
        poisoned = {name: np.full_like(a, np.nan) for name, a in session.program.read_pages(group, pages).items()}
        session.program.write_pages(group, pages, poisoned)
    session.manager.close(lane)
    assert session.manager.open() == lane
    after = session.feed(lane, tokens)
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(after, before)


def test_tokens_that_were_taken_back_are_void() -> None:
    """Slots behind the last position of a page that is written are NaN: whoever reads one shows it."""
    session = Session(CONFIG, max_context=64, max_chunk=16)
    lane = session.manager.open()
    session.feed(lane, text(10))
    session.manager.rollback(lane, 4)
    session.feed(lane, text(1))
    keys = session.program.read_pages(0, [0])["keys.0"][0]
    assert np.isnan(keys).all(axis=(1, 2)).tolist() == [False] * 5 + [True] * 11


@pytest.mark.parametrize("page_size", [16, None])
def test_a_saved_lane_goes_on_in_another_program(page_size: int | None, tmp_path: Path) -> None:
    mixed = CONFIG.with_window((5, None))
    source, target = (Session(mixed, max_context=100, max_chunk=7, page_size=page_size) for _ in range(2))
    lane = source.manager.open()
    source.feed(lane, text(40))
    saved = save_lane(source.program, source.manager, lane)
    for index, state in enumerate(saved.groups):
        arrays: Any = state
        np.savez(tmp_path / f"{index}.npz", **arrays)
    integers = json.loads(json.dumps(saved.integers))
    other = target.manager.open()
    target.feed(other, text(3))
    files = [np.load(tmp_path / f"{index}.npz") for index in range(2)]
    loaded = load_lane(target.program, target.manager, SavedLane(integers, tuple(dict(file) for file in files)))
    np.testing.assert_array_equal(target.feed(loaded, text(30, 1)), source.feed(lane, text(30, 1)))


def test_a_saved_lane_is_as_small_as_its_window() -> None:
    session = Session(CONFIG.with_window((5, None)), max_context=100, max_chunk=7)
    lane = session.manager.open()
    session.feed(lane, text(40))
    saved = save_lane(session.program, session.manager, lane)
    assert [len(state[f"keys.{layer}"]) for layer, state in enumerate(saved.groups)] == [1, 3]
    assert saved.nbytes == session.spec.page_bytes(0, 8) + 3 * session.spec.page_bytes(1, 8)


def test_read_pages_are_copies() -> None:
    session = Session(CONFIG, max_context=64, max_chunk=4)
    lane = session.manager.open()
    session.feed(lane, text(10))
    saved = session.program.read_pages(0, [0])
    kept = {name: array.copy() for name, array in saved.items()}
    session.feed(lane, text(10, 1))
    for name, array in saved.items():
        np.testing.assert_array_equal(array, kept[name])


def test_a_lane_that_was_never_fed_can_be_forked_and_saved() -> None:
    session = Session(CONFIG, max_context=64, max_chunk=4, max_lanes=3)
    lane = session.manager.open()
    lanes = [lane, session.manager.fork(lane)]
    lanes.append(load_lane(session.program, session.manager, save_lane(session.program, session.manager, lane)))
    first, *others = [session.feed(lane, text(9)) for lane in lanes]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_lane_goes_on_where_other_sizes_are_chosen() -> None:
    large = Session(CONFIG, max_context=1000, max_chunk=300)
    small = Session(CONFIG, max_context=300, max_chunk=10)
    lane = large.manager.open()
    large.feed(lane, text(280))
    loaded = load_lane(small.program, small.manager, save_lane(large.program, large.manager, lane))
    np.testing.assert_array_equal(small.feed(loaded, text(9)), large.feed(lane, text(9)))


def misfits(state: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    whole = dict(state)
    return {
        "a layer too few": {name: array for name, array in whole.items() if name != "values.1"},
        "a layer too many": whole | {"keys.2": whole["keys.1"], "values.2": whole["values.1"]},
        "another name": {name.replace("keys", "key"): array for name, array in whole.items()},
        "another type": {name: array.astype(np.float32) for name, array in whole.items()},
        "more heads": {name: np.repeat(array, 2, axis=2) for name, array in whole.items()},
        "larger heads": {name: np.repeat(array, 2, axis=3) for name, array in whole.items()},
        "no heads": {name: array[:, :, 0] for name, array in whole.items()},
        "a scalar": whole | {"keys.0": np.array(1.0)},
        "a page too few": {name: array[1:] for name, array in whole.items()},
    }


@pytest.mark.parametrize(
    "kind", misfits(dict.fromkeys(("keys.0", "keys.1", "values.0", "values.1"), np.ones((2, 16, 1, 4))))
)
def test_misfit_arrays_are_refused_and_change_nothing(kind: str) -> None:
    session = Session(CONFIG, max_context=64, max_chunk=4)
    lane = session.manager.open()
    session.feed(lane, text(40))
    before = save_lane(session.program, session.manager, lane)
    broken = replace(before, groups=(misfits(before.groups[0])[kind],))
    with pytest.raises(CacheError, match="saved lane"):
        load_lane(session.program, session.manager, broken)
    assert session.manager.lanes == (lane,)
    after = save_lane(session.program, session.manager, lane)
    for name, array in before.groups[0].items():
        np.testing.assert_array_equal(after.groups[0][name], array)  # NaN is equal to NaN
    with pytest.raises(CacheError, match="0 layer groups, this model 1"):
        load_lane(session.program, session.manager, replace(before, groups=()))
