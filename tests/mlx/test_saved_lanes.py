"""Lanes that are saved, and pages that are read and written."""

from typing import Any

import numpy as np
import pytest
from mlx_sessions import CONFIG, KV_CACHES, Session, text

from mistral_portable.errors import CacheError

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.mark.parametrize("options", [{}, {"kv_cache": "q8_0"}, {"dtype": "bfloat16"}])
def test_a_saved_lane_goes_on_in_another_program(options: dict[str, Any]) -> None:
    one, other = Session(**options), Session(**options)
    lane, _ = one.begin(text(90))
    saved = one.save(lane)
    assert saved.nbytes == one.program.cache_bytes
    loaded = other.load(saved)
    assert other.program.cache_bytes == saved.nbytes
    np.testing.assert_array_equal(one.feed(lane, text(9, 1)), other.feed(loaded, text(9, 1)))


@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_pages_of_different_lengths_are_read_and_written_together(kv_cache: str | None) -> None:
    """They have as many slots as the longest, and the others' end in zeros."""
    full = CONFIG.with_window(None)
    one, other = Session(full, kv_cache=kv_cache), Session(full, kv_cache=kv_cache)
    lanes = [one.begin(text(length, length))[0] for length in (3, 300)]
    short, long = (one.manager.pages(lane)[0] for lane in lanes)
    state = one.program.read_pages(0, long + short)
    alone = one.program.read_pages(0, short)
    for name, array in state.items():
        assert array.shape[:3] == (2, CONFIG.num_key_value_heads, 400)
        np.testing.assert_array_equal(array[1, :, :256], alone[name][0])
        assert not array[1, :, 256:].any()
    theirs = [other.manager.load(one.manager.save(lane)[0])[0] for lane in lanes]
    short, long = (other.manager.pages(lane)[0] for lane in theirs)
    other.program.write_pages(0, long + short, state)
    for mine, its in zip(lanes, theirs, strict=True):
        # The tolerance: sums of other shapes are added up in another order, in float32.
        np.testing.assert_allclose(one.feed(mine, [1, 2]), other.feed(its, [1, 2]), rtol=1e-5, atol=1e-5)


def test_a_lane_saved_before_its_first_step_is_empty() -> None:
    session = Session()
    saved = session.save(session.manager.open())
    assert saved.nbytes == 0
    lane = session.load(saved)
    assert np.isfinite(session.feed(lane, [1])).all()


@pytest.mark.parametrize("broken", ["missing", "dtype", "pages", "heads", "slots", "too many slots", "other cache"])
def test_foreign_pages_are_refused_and_nothing_changes(broken: str) -> None:
    session, expected = Session(), Session()
    lane, _ = session.begin(text(30))
    state = dict(session.program.read_pages(0, [0]))
    match broken:
        case "missing":
            del state["keys.1"]
        case "dtype":
            state["keys.1"] = state["keys.1"].astype(np.float16)
        case "pages":
            state = {name: np.concatenate([array, array]) for name, array in state.items()}
        case "heads":
            state["keys.1"] = state["keys.1"][:, :1]
        case "slots":
            state["values.1"] = state["values.1"][:, :, :3]
        case "too many slots":
            state = {name: np.concatenate([array, array], axis=2) for name, array in state.items()}
        case "other cache":
            other = Session(kv_cache="q8_0")
            other.begin(text(30))
            state = dict(other.program.read_pages(0, [0]))
    with pytest.raises(CacheError, match="saved lane"):
        session.program.write_pages(0, [0], state)
    its, _ = expected.begin(text(30))
    np.testing.assert_array_equal(session.feed(lane, [1]), expected.feed(its, [1]))
