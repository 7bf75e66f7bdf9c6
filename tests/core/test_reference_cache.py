"""The cache of the reference program: constant memory, forks, saved lanes, rollbacks, and no stale slot read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, Program, prepare
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

    def __init__(self, config: MistralConfig, *, max_context: int, max_chunk: int, max_lanes: int = 2) -> None:
        graph = build(config)
        self.config = config
        self.spec = CacheSpec.from_config(config, max_context=max_context, max_chunk=max_chunk, max_lanes=max_lanes)
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


def cache_bytes(config: MistralConfig, lengths: tuple[int, ...]) -> list[int]:
    """Bytes allocated for one lane when the text has each of these lengths."""
    session = Session(config, max_context=16 * WINDOW, max_chunk=16)
    lane, measured, length = session.manager.open(), [], 0
    for longer in lengths:
        session.feed(lane, text(longer - length))
        measured.append(session.program.cache_bytes)
        length = longer
    return measured


def test_a_windowed_lane_takes_the_same_bytes_however_long_the_text() -> None:
    ring = 2 * (WINDOW + 16 - 1) * SLOT
    assert cache_bytes(CONFIG, (WINDOW, 4 * WINDOW, 16 * WINDOW)) == [ring, ring, ring]
    spec = CacheSpec.from_config(CONFIG, max_context=16 * WINDOW, max_chunk=16)
    assert spec.lane_bytes(8) == ring


def test_a_full_lane_grows_with_the_text() -> None:
    full = CONFIG.with_window(None)
    assert cache_bytes(full, (WINDOW, 16 * WINDOW)) == [2 * 256 * SLOT, 2 * 512 * SLOT]
    mixed = CONFIG.with_window((WINDOW, None))
    ring = (WINDOW + 16 - 1) * SLOT
    assert cache_bytes(mixed, (WINDOW, 16 * WINDOW)) == [ring + 256 * SLOT, ring + 512 * SLOT]


def test_each_lane_has_bytes_of_its_own() -> None:
    session = Session(CONFIG, max_context=64, max_chunk=1)
    for lanes in (1, 2):
        session.feed(session.manager.open(), text(40))
        assert session.program.cache_bytes == lanes * session.spec.lane_bytes(8)


@st.composite
def sessions(draw: st.DrawFn) -> tuple[Session, list[int]]:
    """A session and a text of 1 .. 30 tokens for it; the rings wrap at most windows."""
    config = draw(configs(max_layers=2))
    tokens = draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=30))
    return Session(config, max_context=40, max_chunk=draw(st.integers(1, 9))), tokens


@given(sessions(), st.integers(0, 9))
def test_logits_after_a_rollback_are_those_of_a_fresh_run(drawn: tuple[Session, list[int]], back: int) -> None:
    session, tokens = drawn
    lane, fresh = session.manager.open(), session.manager.open()
    wrong = [(token + 1) % session.config.vocab_size for token in tokens[-min(back, session.spec.max_chunk) :]]
    keep = len(tokens) - len(wrong)
    session.feed(lane, tokens[:keep] + wrong)
    session.manager.rollback(lane, keep)
    expected = session.feed(fresh, tokens)[keep:]
    np.testing.assert_allclose(session.feed(lane, tokens[keep:]), expected, rtol=0, atol=1e-12)


@given(sessions())
def test_a_fork_and_its_source_go_on_alike_and_apart(drawn: tuple[Session, list[int]]) -> None:
    session, tokens = drawn
    lane = session.manager.open()
    session.feed(lane, tokens)
    fork = session.manager.fork(lane)
    session.program.copy_lane(lane, fork)
    once = session.feed(lane, tokens[:9])
    np.testing.assert_array_equal(session.feed(fork, tokens[:9]), once)


@given(sessions())
def test_unused_slots_are_never_read(drawn: tuple[Session, list[int]]) -> None:
    """The program fills slots that nothing was written to with NaN; those of a closed lane are poisoned here."""
    session, tokens = drawn
    lane = session.manager.open()
    before = session.feed(lane, tokens)
    poisoned = {name: np.full_like(array, np.nan) for name, array in session.program.save_lane(lane).items()}
    session.program.load_lane(lane, poisoned)
    session.manager.close(lane)
    assert session.manager.open() == lane
    after = session.feed(lane, tokens)
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(after, before)


def test_a_saved_lane_goes_on_in_another_program(tmp_path: Path) -> None:
    sizes = {"max_context": 100, "max_chunk": 7}
    mixed = CONFIG.with_window((5, None))
    source, target = Session(mixed, **sizes), Session(mixed, **sizes)
    lane = source.manager.open()
    source.feed(lane, text(40))
    arrays: Any = source.program.save_lane(lane)
    np.savez(tmp_path / "lane.npz", **arrays)
    other = target.manager.open()
    target.feed(other, text(3))
    loaded = target.manager.load(source.manager.save(lane))
    with np.load(tmp_path / "lane.npz") as saved:
        target.program.load_lane(loaded, dict(saved))
    np.testing.assert_array_equal(target.feed(loaded, text(30, 1)), source.feed(lane, text(30, 1)))


def test_saved_arrays_are_copies() -> None:
    session = Session(CONFIG, max_context=64, max_chunk=4)
    lane = session.manager.open()
    session.feed(lane, text(10))
    saved = session.program.save_lane(lane)
    kept = {name: array.copy() for name, array in saved.items()}
    session.feed(lane, text(10, 1))
    for name, array in saved.items():
        np.testing.assert_array_equal(array, kept[name])


def test_a_lane_that_was_never_fed_can_be_copied() -> None:
    session = Session(CONFIG, max_context=64, max_chunk=4)
    lane = session.manager.open()
    fork = session.manager.fork(lane)
    session.program.copy_lane(lane, fork)
    np.testing.assert_array_equal(session.feed(fork, text(9)), session.feed(lane, text(9)))


def test_a_lane_saved_where_lanes_are_larger_continues_in_smaller_ones() -> None:
    large = Session(CONFIG, max_context=1000, max_chunk=300)
    small = Session(CONFIG, max_context=300, max_chunk=300)
    lane = large.manager.open()
    large.feed(lane, text(280))
    loaded = small.manager.load(large.manager.save(lane))
    small.program.load_lane(loaded, large.program.save_lane(lane))
    np.testing.assert_array_equal(small.feed(loaded, text(9)), large.feed(lane, text(9)))


def misfits(state: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, NDArray[Any]]]:
    whole = dict(state)
    return {
        "a layer too few": {name: array for name, array in whole.items() if name != "values.1"},
        "a layer too many": whole | {"keys.2": whole["keys.1"], "values.2": whole["values.1"]},
        "another name": {name.replace("keys", "key"): array for name, array in whole.items()},
        "another type": {name: array.astype(np.float32) for name, array in whole.items()},
        "more heads": {name: np.repeat(array, 2, axis=1) for name, array in whole.items()},
        "larger heads": {name: np.repeat(array, 2, axis=2) for name, array in whole.items()},
        "no heads": {name: array[:, 0] for name, array in whole.items()},
        "a scalar": whole | {"keys.0": np.array(1.0)},
        "fewer values than keys": whole | {"values.0": whole["values.0"][1:]},
    }


@pytest.mark.parametrize(
    "kind", misfits(dict.fromkeys(("keys.0", "keys.1", "values.0", "values.1"), np.ones((2, 1, 4))))
)
def test_misfit_arrays_are_refused_and_change_nothing(kind: str) -> None:
    session = Session(CONFIG, max_context=64, max_chunk=4)
    lane = session.manager.open()
    session.feed(lane, text(40))
    before = session.program.save_lane(lane)
    with pytest.raises(CacheError, match="saved lane"):
        session.program.load_lane(lane, misfits(before)[kind])
    after = session.program.save_lane(lane)
    assert all(np.array_equal(after[name], before[name]) for name in before)
