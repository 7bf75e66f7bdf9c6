"""Pages of the torch executor: forks, and lanes that are saved and go on elsewhere."""

import numpy as np
import pytest
from torch_sessions import PagedBackend, Session, alone, text

from mistral_portable.boundary import load_lane, save_lane
from mistral_portable.cache import Chunk
from mistral_portable.errors import CacheError, CapacityError


def test_a_fork_and_its_source_continue_separately() -> None:
    session, alone = Session(), Session()
    lane, _ = session.begin(text(31))  # 10 full pages, and a slot of the next one
    fork = session.manager.fork(lane)
    plan = session.manager.plan([Chunk(fork, text(5, 1), range(5)), Chunk(lane, text(5, 2), range(5))])
    assert len(plan.groups[0].copies)
    forked, kept = np.split(session.program.step(plan)["logits"], 2)
    for found, tail in ((forked, text(5, 1)), (kept, text(5, 2))):
        other, _ = alone.begin(text(31))
        np.testing.assert_allclose(found, alone.feed(other, tail), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_lane_continues_in_another_program(dtype: str) -> None:
    one, other = Session(dtype=dtype), Session(dtype=dtype)
    other.begin(text(5))  # so that the loaded lane gets other pages
    lane, _ = one.begin(text(90))
    saved = save_lane(one.program, one.manager, lane)
    expected = one.feed(lane, text(9, 1))  # does not change the saved lane
    loaded = load_lane(other.program, other.manager, saved)
    np.testing.assert_array_equal(other.feed(loaded, text(9, 1)), expected)


def test_pages_of_a_program_before_its_first_step() -> None:
    session = Session()
    state = session.program.read_pages(0, [])
    assert {array.shape for array in state.values()} == {(0, 3, 2, 16)}
    session.program.write_pages(0, [], state)
    assert session.program.cache_bytes == 0


@pytest.mark.parametrize("broken", ["missing", "dtype", "heads", "pages", "another page"])
def test_pages_of_another_model_are_refused_and_nothing_changes(broken: str) -> None:
    session = Session()
    lane, _ = session.begin(text(30))
    pages, before = session.manager.pages(lane)[0], session.program.cache_bytes
    state = {name: np.zeros_like(array) for name, array in session.program.read_pages(0, pages).items()}
    match broken:
        case "missing":
            del state["keys.1"]
        case "dtype":
            state["keys.1"] = state["keys.1"].astype(np.float16)
        case "heads":
            state["keys.1"] = state["keys.1"][:, :, :1]
        case "pages":
            state["values.1"] = state["values.1"][:3]
        case "another page":
            state = {name: np.zeros((len(pages), 5, 2, 16), np.float32) for name in state}
    for into in (pages, [page + 100 for page in pages]):
        with pytest.raises(CacheError, match="saved lane"):
            session.program.write_pages(0, into, state)
    assert session.program.cache_bytes == before
    np.testing.assert_array_equal(session.feed(lane, [1]), alone(30))


def test_pages_that_do_not_fit_in_memory_are_an_error_and_nothing_changes() -> None:
    session = Session(backend=PagedBackend(memory=900_000))
    lane, _ = session.begin(text(30))
    state, before = session.program.read_pages(0, [0]), session.program.cache_bytes
    with pytest.raises(CapacityError, match="the cache does not fit"):
        session.program.write_pages(0, [10**6], state)
    assert session.program.cache_bytes == before
    np.testing.assert_array_equal(session.feed(lane, [1]), alone(30))
