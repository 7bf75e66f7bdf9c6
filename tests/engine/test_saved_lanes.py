"""Core.save and Core.load: a sequence leaves its lane and goes on in another one, also while others step."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import mistral_portable as mp
from mistral_portable.cache import Chunk
from mistral_portable.engine.core import Core
from mistral_portable.engine.model import Model
from mistral_portable.errors import BusyError, CapacityError, ClosedError

IDS = list(range(3, 40))


@pytest.fixture
def model() -> Iterator[Model]:
    with mp.load("tiny", backend="reference", max_context=200, max_lanes=4) as model:
        yield model


def logits(core: Core, lane: int, token: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return core.step([Chunk(lane, [token], rows=[0])])


def test_a_loaded_lane_goes_on_where_the_saved_one_was(model: Model) -> None:
    core = model.core
    with core.lane() as lane, core.lane() as other:
        core.step([Chunk(lane, IDS), Chunk(other, IDS[::-1])])
        saved = core.save(lane)
        core.step([Chunk(lane, [7])])  # what is saved stays as it is
        core.manager.rollback(lane, len(IDS))
        loaded = core.load(saved)
        np.testing.assert_array_equal(logits(core, loaded, 5), logits(core, lane, 5))
        core.manager.close(loaded)


def test_saved_lanes_move_while_other_threads_step(model: Model) -> None:
    core, errors = model.core, list[BaseException]()
    end = threading.Event()

    def step_on() -> None:
        try:
            while not end.is_set():
                with core.lane() as lane:
                    core.step([Chunk(lane, IDS)])
        except BaseException as error:
            errors.append(error)

    with core.lane() as lane:
        core.step([Chunk(lane, IDS)])
        expected = logits(core, lane, 5)
        core.manager.rollback(lane, len(IDS))
        thread = threading.Thread(target=step_on)
        thread.start()
        try:
            for _ in range(20):
                loaded = core.load(core.save(lane))
                np.testing.assert_array_equal(logits(core, loaded, 5), expected)
                core.manager.close(loaded)
        finally:
            end.set()
            thread.join()
    assert errors == []
    assert core.manager.pages_in_use(0) == 0


def test_a_load_that_fails_opens_no_lane(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    core = model.core
    with core.lane() as lane:
        core.step([Chunk(lane, IDS)])
        saved, used = core.save(lane), core.manager.pages_in_use(0)

        def fail(*arguments: object) -> None:
            raise CapacityError("no memory for more pages")

        with monkeypatch.context() as patched:
            patched.setattr(core.program, "write_pages", fail)
            with pytest.raises(CapacityError):
                core.load(saved)
        assert (core.manager.lanes, core.manager.pages_in_use(0)) == ((lane,), used)
        held = [core.load(saved) for _ in range(3)]
        with pytest.raises(BusyError, match="all 4 lanes"):
            core.load(saved)
        for loaded in held:
            core.manager.close(loaded)


def test_a_failed_step_leaves_a_fork_and_its_source_as_they_were(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step was to copy the page that they share."""
    core = model.core
    with core.lane() as lane:
        core.step([Chunk(lane, IDS)])
        fork = core.manager.fork(lane)
        alone = core.load(core.save(lane))
        expected = logits(core, alone, 5)

        def fail(*arguments: object) -> None:
            raise CapacityError("no memory for more pages")

        with monkeypatch.context() as patched:
            patched.setattr(core.program, "step", fail)
            for _ in range(2):
                with pytest.raises(CapacityError):
                    core.step([Chunk(fork, [5]), Chunk(lane, [6])])
        np.testing.assert_array_equal(logits(core, fork, 5), expected)
        np.testing.assert_array_equal(logits(core, lane, 5), expected)
        core.manager.close(fork)
        core.manager.close(alone)


def test_a_closed_core_neither_saves_nor_loads(model: Model) -> None:
    core = model.core
    lane = core.manager.open()
    core.step([Chunk(lane, IDS)])
    saved = core.save(lane)
    core.close()
    with pytest.raises(ClosedError, match="load it again"):
        core.save(lane)
    with pytest.raises(ClosedError, match="load it again"):
        core.load(saved)
