"""Saved lanes of the Numba executor: loaded by other programs, and refused by other models."""

from typing import Any

import numpy as np
import pytest
from numba_sessions import CONFIG, KV_CACHES, WINDOW, Session, text
from numpy.typing import NDArray

from mistral_portable.boundary import LaneState
from mistral_portable.errors import CacheError, ClosedError


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("window", [WINDOW, 70, None])
def test_a_saved_lane_continues_in_programs_with_other_lane_sizes(kv_cache: str, window: int | None) -> None:
    config = CONFIG.with_window(window)
    source = Session(config, kv_cache=kv_cache, max_chunk=100, max_context=400)
    lane, _ = source.begin(text(137))
    saved = source.save(lane)
    expected = source.feed(lane, text(30, 1))
    for max_chunk, max_context in ((100, 400), (40, 400), (30, 170), (300, 4000)):
        session = Session(config, kv_cache=kv_cache, max_chunk=max_chunk, max_context=max_context)
        other, _ = session.begin(text(150, 2))  # its numbers are overwritten
        session.manager.close(other)
        np.testing.assert_array_equal(session.feed(session.load(saved), text(30, 1)), expected)


def test_a_saved_lane_is_a_copy() -> None:
    session = Session()
    lane, _ = session.begin(text(30))
    saved = session.save(lane)
    before = {name: array.copy() for name, array in saved.groups[0].items()}
    session.feed(lane, text(9, 1))
    assert saved.groups[0].keys() == before.keys()
    assert all((saved.groups[0][name] == before[name]).all() for name in before)


def test_an_empty_lane_can_be_saved_and_loaded() -> None:
    session = Session()
    loaded = session.load(session.save(session.manager.open()))
    first = session.begin(text(5))[1]
    np.testing.assert_array_equal(session.feed(loaded, text(5)), first)


def test_a_closed_program_neither_reads_nor_writes_pages() -> None:
    session = Session()
    session.begin(text(3))
    state = session.program.read_pages(0, [0])
    session.program.close()
    with pytest.raises(ClosedError, match="closed"):
        session.program.read_pages(0, [0])
    with pytest.raises(ClosedError, match="closed"):
        session.program.write_pages(0, [0], state)
    assert session.program.cache_bytes == 0


def foreign(kind: str, state: LaneState) -> LaneState:
    """Arrays of pages, changed so that they do not fit this model."""
    name = "values.1"
    array = state[name]
    changes: dict[str, Any] = {
        "a layer less": {},
        "another name": {"values.7": array},
        "other numbers": {name: array.astype(np.float64)},
        "integers": {name: array.view(np.int16)},
        "other heads": {name: array[:, :1]},
        "other slots": {name: array[..., : array.shape[2] // 2]},
        "half a slot": {name: array[..., :-1]},
        "no slots": {name: array[..., :0]},
        "a page more": {name: np.concatenate([array, array[:1]])},
        "a page less": {name: array[:-1]},
        "a vector": {name: array.ravel()},
        "a number": {name: array[0, 0, 0]},
        "another axis": {name: array[..., None]},
        "text": {name: np.array(["garbage"])},
        "objects": {name: np.array([[object()], [object()]])},
        "more": {name: array, "keys.2": state["keys.1"]},
    }
    changed: dict[str, NDArray[Any]] = changes[kind]
    return {key: value for key, value in state.items() if key != name} | changed


@pytest.mark.parametrize(
    "kind",
    [
        *("a layer less", "another name", "other numbers", "integers", "other heads", "other slots", "half a slot"),
        *("no slots", "a page more", "a page less", "a vector", "a number", "another axis", "text", "objects", "more"),
    ],
)
def test_pages_of_another_model_are_refused_and_change_nothing(kind: str) -> None:
    session, other = Session(max_chunk=100), Session(max_chunk=100)
    lane, _ = session.begin(text(100))
    expected = other.feed(other.begin(text(100))[0], text(5, 1))
    state = foreign(kind, session.program.read_pages(0, [0, 1]))
    with pytest.raises(CacheError) as caught:
        session.program.write_pages(0, [1, 2], state)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(session.feed(lane, text(5, 1)), expected)


@pytest.mark.parametrize("kv_cache", ["float32", "q8_0"])
def test_pages_of_another_kv_cache_are_refused(kv_cache: str) -> None:
    sessions = Session(kv_cache=kv_cache), Session()
    saved = [session.save(session.begin(text(30))[0]) for session in sessions]
    for session, foreign in zip(sessions, reversed(saved), strict=True):
        with pytest.raises(CacheError):
            session.load(foreign)
        assert session.manager.lanes == (0,)
