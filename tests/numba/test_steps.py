"""Steps of the Numba executor: outputs are the caller's own, and bits do not depend on threads, chunks or forks."""

import threading

import numpy as np
import pytest
from numba_sessions import CONFIG, KV_CACHES, WINDOW, Session, text
from numpy.typing import NDArray

from mistral_portable.cache import Chunk
from mistral_portable.errors import ClosedError


def test_outputs_are_the_callers_own() -> None:
    session, other = Session(), Session()
    lane, first = session.begin(text(7))
    kept = first.copy()
    expected = other.feed(other.begin(text(7))[0], text(9, 1))
    out = session.program.step(session.manager.plan([Chunk(lane, text(9, 1), range(9))]))["logits"]
    assert out.flags.owndata
    assert out.flags.writeable
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(first, kept)
    out.fill(np.nan)
    assert np.isfinite(session.feed(lane, [1])).all()


def test_no_rows_requested() -> None:
    session = Session()
    out = session.program.step(session.manager.plan([Chunk(session.manager.open(), [1, 2, 3])]))
    assert out["logits"].shape == (0, CONFIG.vocab_size)


def test_steps_of_a_closed_program_are_an_error() -> None:
    session = Session()
    plan = session.manager.plan([Chunk(session.manager.open(), [1, 2], [1])])
    session.program.step(plan)
    assert session.program.cache_bytes > 0
    session.program.close()
    session.program.close()
    assert session.program.cache_bytes == 0
    with pytest.raises(ClosedError, match="closed: prepare it again"):
        session.program.step(plan)


def test_results_do_not_depend_on_threads_nor_on_larger_steps_before() -> None:
    alone = [Session(threads=1).begin(text(count))[1] for count in (1, 3, 40)]
    for threads in (1, 2, 3, 7):
        session = Session(threads=threads)
        for _ in range(2):
            for count, expected in zip((1, 3, 40), alone, strict=True):
                lane, out = session.begin(text(count))
                np.testing.assert_array_equal(out, expected)
                session.manager.close(lane)


def test_concurrent_programs_and_callers_do_not_change_results() -> None:
    def run(session: Session, lane: int, out: list[NDArray[np.float32]], turn: threading.Lock) -> None:
        for step in range(12):
            with turn:  # the manager is not thread-safe; the program is
                plan = session.manager.plan([Chunk(lane, text(1 + 5 * step % 13, lane + step), [0])])
            out.append(session.program.step(plan)["logits"])

    def results(sessions: list[Session], together: bool) -> list[list[NDArray[np.float32]]]:
        outs: list[list[NDArray[np.float32]]] = []
        workers = []
        for session in sessions:
            turn = threading.Lock()
            for lane in [session.manager.open() for _ in range(3)]:
                outs.append([])
                workers.append(threading.Thread(target=run, args=(session, lane, outs[-1], turn)))
        for worker in workers:
            worker.start()
            if not together:
                worker.join()
        for worker in workers:
            worker.join()
        return outs

    alone = results([Session() for _ in range(2)], together=False)
    beside = results([Session() for _ in range(2)], together=True)
    assert [len(out) for out in beside] == [12] * 6
    for expected, out in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(np.concatenate(out), np.concatenate(expected))


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("window", [WINDOW, 70, None])
def test_chunks_neighbours_and_forks_do_not_change_a_bit(kv_cache: str, window: int | None) -> None:
    """The bits do not depend on the sequence's pages either. After each step it continues in its lane or in a fork of
    it; the other one shares its pages, and then continues with another text.
    """
    whole, parts = (Session(CONFIG.with_window(window), kv_cache=kv_cache, max_chunk=200) for _ in range(2))
    expected = whole.begin(text(200))[1]
    parts.manager.close(parts.begin(text(130, 1))[0])
    beside, lane, at = parts.begin(text(3, 2))[0], parts.manager.open(), 0
    other = parts.manager.fork(lane)
    for count in (1, 2, 60, 3, 40, 1, 1, 63, 29):
        own, others = text(200)[at : at + count], text(1 + count % 5, count)
        chunks = [Chunk(beside, others, [0]), Chunk(lane, own, range(count))]
        out = parts.program.step(parts.manager.plan(chunks))["logits"][1:]
        np.testing.assert_array_equal(out, expected[at : at + count])
        at += count
        parts.feed(other, text(2, 3))
        parts.manager.close(other)
        other = parts.manager.fork(lane)
        if count % 2:
            lane, other = other, lane
    assert at == 200
