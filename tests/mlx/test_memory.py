"""Memory of the MLX executor's programs: what lanes take and give back, and what is refused."""

import mlx.core as mx
import numpy as np
import pytest
from mistral_portable_mlx.memory import Memory
from mlx_sessions import CONFIG, WIDE, Session, in_use, text

from mistral_portable.errors import CapacityError

pytestmark = pytest.mark.usefixtures("uncompiled")


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
    with pytest.raises(CapacityError, match=r"weights 0\.\d\d GB \+ keys and values of 48 tokens .* = .* has 0\.00 GB"):
        Session(memory=1000)


def test_a_cache_that_outgrows_the_memory_is_an_error_and_the_rest_goes_on() -> None:
    session = Session(WIDE, max_context=9000, max_chunk=500, memory=in_use() + 1_500_000)
    first, _ = session.begin(text(200))
    second = session.manager.open()
    with pytest.raises(CapacityError, match=r"more beside .* in use"):
        session.feed(second, text(3000))
    assert np.isfinite(session.feed(first, [1])).all()


def test_freed_scratch_is_given_back() -> None:
    session = Session()
    session.begin(text(48))
    assert mx.get_cache_memory() <= 2**29
    session.program.close()
    assert mx.get_cache_memory() == 0


def test_a_fork_for_whose_copy_there_is_no_memory_is_refused() -> None:
    """The first write after a fork makes the copy. The source is then still written in place."""
    session = Session(WIDE, max_context=9000, max_chunk=500, memory=in_use() + 2_300_000)
    lane, _ = session.begin(text(2400))
    before = session.program.cache_bytes
    assert before > 1_000_000
    fork = session.manager.fork(lane)
    with pytest.raises(CapacityError, match=r"more beside .* in use"):
        session.feed(fork, [1])
    session.manager.close(fork)
    assert np.isfinite(session.feed(lane, [1])).all()
    assert session.program.cache_bytes == before


def test_a_join_for_whose_copies_there_is_no_memory_is_refused() -> None:
    """One layer of the lanes that decode together is in memory twice."""
    session = Session(WIDE, max_context=9000, max_chunk=500, memory=in_use() + 3_700_000)
    lanes = [session.begin(text(2400, lane))[0] for lane in range(2)]
    before = session.program.cache_bytes
    assert before > 2_500_000
    with pytest.raises(CapacityError, match=r"cannot be moved, 2 sequences, .*: .* more beside"):
        session.together(lanes)
    for lane in lanes:
        assert np.isfinite(session.feed(lane, [1])).all()
    assert session.program.cache_bytes == before


def test_it_is_said_if_weights_cannot_stay_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS before 15 has no wired limit."""

    def refuse(limit: int) -> int:
        raise RuntimeError("setting the wired limit needs macOS 15")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    with pytest.warns(UserWarning, match="weights are not wired.*macOS 15"):
        Memory(2**30, "Metal").configure()
