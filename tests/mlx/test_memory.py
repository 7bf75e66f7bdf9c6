"""Memory of the MLX executor's programs: what lanes take and give back, and what is refused."""

import gc
from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mistral_portable_mlx.device import find_device
from mistral_portable_mlx.memory import Memory
from mlx_sessions import CONFIG, WIDE, Session, in_use, text

from mistral_portable.cache import Chunk
from mistral_portable.errors import CapacityError

pytestmark = pytest.mark.usefixtures("uncompiled")
LARGE = replace(CONFIG.with_window(600), head_dim=128, num_key_value_heads=4)  # its cache outweighs scratch
REFUSAL = r"does not fit: weights 0\.\d\d GB \+ keys and values 0\.\d\d GB \+ scratch 0\.\d\d GB \+ .* = .*, and"


@pytest.fixture
def leave_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let other models take all of the memory but so many bytes."""
    counted, whole = mx.get_active_memory, find_device().memory

    def leave(free: int) -> None:
        gc.collect()
        taken = whole - free - counted()
        monkeypatch.setattr(mx, "get_active_memory", lambda: counted() + taken)

    return leave


def test_a_lane_takes_what_its_text_needs_and_gives_it_back_when_it_starts_anew() -> None:
    session = Session(WIDE, max_context=9000, max_chunk=500)
    lane, _ = session.begin(text(10))
    short = session.program.cache_bytes
    session.decode(lane, 1)
    assert session.program.cache_bytes == short
    session.feed(lane, text(3000))
    slots = session.spec.groups[0].page_size
    assert session.program.cache_bytes == 4 * CONFIG.num_hidden_layers * 2 * 2 * slots * CONFIG.head_dim
    session.manager.close(lane)
    session.begin(text(10))
    assert session.program.cache_bytes == short


def test_a_model_that_cannot_fit_is_refused_with_the_sum() -> None:
    with pytest.raises(
        CapacityError,
        match=r"weights 0\.\d\d GB \+ keys and values of 48 tokens .* \+ scratch of their step 0\..* = .* has 0\.00 GB",
    ):
        Session(memory=1000)


def test_a_cache_that_outgrows_the_memory_is_an_error_and_the_rest_goes_on(leave_free: Callable[[int], None]) -> None:
    session = Session(LARGE, max_chunk=16)
    first, _ = session.begin(text(200))
    leave_free(3_500_000)
    second = session.manager.open()
    with pytest.raises(CapacityError, match=REFUSAL):
        session.feed(second, text(700))
    assert np.isfinite(session.feed(first, [1])).all()


@pytest.mark.parametrize("tokens", [1, 16])
def test_a_step_is_refused_before_it_takes_any_memory(tokens: int, leave_free: Callable[[int], None]) -> None:
    """And as long as a byte of what it asks for is missing."""
    session = Session(LARGE, max_chunk=16)
    session.begin(text(20))
    chunks = [Chunk(session.manager.open(), text(tokens), [tokens - 1])]
    with pytest.MonkeyPatch.context() as patch:
        asked = list[int]()
        patch.setattr(Memory, "has_room", lambda memory, more: asked.append(more))
        with pytest.raises(CapacityError):
            session.step(chunks)
    before, cache = in_use(), session.program.cache_bytes
    leave_free(asked[0] - 1)
    mx.reset_peak_memory()
    with pytest.raises(CapacityError, match=rf"a step of {tokens} tokens .*{REFUSAL}"):
        session.step(chunks)
    assert mx.get_peak_memory() <= before
    assert session.program.cache_bytes == cache
    leave_free(asked[0])
    assert np.isfinite(session.step(chunks)).all()


def test_freed_scratch_is_given_back() -> None:
    session = Session()
    session.begin(text(48))
    assert mx.get_cache_memory() <= 2**29
    session.program.close()
    assert mx.get_cache_memory() == 0


def test_a_fork_for_whose_copy_there_is_no_memory_is_refused(leave_free: Callable[[int], None]) -> None:
    """The first write after a fork makes the copy. The source is then still written in place."""
    session = Session(LARGE, max_context=1000)
    lane, _ = session.begin(text(700))
    before = session.program.cache_bytes
    assert before > 5_000_000
    leave_free(4_000_000)  # less than the copy
    fork = session.manager.fork(lane)
    with pytest.raises(CapacityError, match=REFUSAL):
        session.feed(fork, [1])
    session.manager.close(fork)
    assert np.isfinite(session.feed(lane, [1])).all()
    assert session.program.cache_bytes == before


def test_lanes_for_whose_join_there_is_no_memory_decode_apart(leave_free: Callable[[int], None]) -> None:
    """One layer of the lanes that decode together would be in memory twice. They join when there is room again."""
    session, alone = (Session(LARGE, max_context=1000) for _ in range(2))
    lanes, others = ([one.begin(text(700, lane))[0] for lane in range(2)] for one in (session, alone))
    before, held = session.program.cache_bytes, in_use()
    assert before > 10_000_000
    for free, joins in ((4_000_000, False), (10**9, True), (4_000_000, False)):  # a layer of both takes more
        leave_free(free)
        mx.reset_peak_memory()
        found = session.together(lanes)
        assert (mx.get_peak_memory() - held > 4_000_000) == joins
        leave_free(10**9)
        expected = [alone.feed(lane, [1])[0] for lane in others]
        # The tolerance: sums of other shapes are added up in another order, in float32.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert session.program.cache_bytes == before


def test_who_leaves_without_memory_for_copies_decodes_in_the_array_of_all(leave_free: Callable[[int], None]) -> None:
    session, alone = (Session(LARGE, max_context=1000) for _ in range(2))
    lanes, others = ([one.begin(text(700, lane))[0] for lane in range(3)] for one in (session, alone))
    session.together(lanes)
    for lane in others:
        alone.feed(lane, [1])
    for chosen in ([0, 2], [1], [2, 1], [0, 1, 2]):
        leave_free(1_500_000)  # less than a layer of one
        found = session.together([lanes[number] for number in chosen], 2)
        leave_free(10**9)
        expected = [alone.feed(others[number], [2])[0] for number in chosen]
        # The tolerance: sums of other shapes are added up in another order, in float32.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert session.program.cache_bytes == alone.program.cache_bytes


def test_it_is_said_if_weights_cannot_stay_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS before 15 has no wired limit."""

    def refuse(limit: int) -> int:
        raise RuntimeError("setting the wired limit needs macOS 15")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    with pytest.warns(UserWarning, match="weights are not wired.*macOS 15"):
        Memory(2**30, "Metal").configure()
