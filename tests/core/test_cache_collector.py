"""The garbage collector may close a lane between any two lines of another call: nothing is freed in its middle."""

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from mistral_portable import cache
from mistral_portable.cache import CacheBudget, CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig

FOLDER = str(cache.__path__[0])


def interrupted(call: Callable[[], Any], line: int, collect: Callable[[], None]) -> bool:
    """Run `call`, and `collect` before the line-th line of the cache's modules; whether there are that many."""
    passed = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal passed
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            passed += 1
            if passed == line:
                sys.settrace(None)
                collect()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return passed >= line


def close(manager: CacheManager, lanes: list[int]) -> None:
    for lane in lanes:
        manager.close(lane)


CALLS: dict[str, Callable[[CacheManager, int], Any]] = {
    "plan": lambda manager, lane: manager.plan([Chunk(lane, [1, 2, 3])]),
    "undo": lambda manager, lane: manager.undo(manager.plan([Chunk(lane, [1, 2, 3])])),
    "fork": lambda manager, lane: manager.fork(lane),
    "rollback": lambda manager, lane: manager.rollback(lane, 4),
    "load": lambda manager, lane: manager.load(manager.save(lane)[0]),
    "open": lambda manager, lane: manager.open(),
    "close": lambda manager, lane: manager.close(lane),
}


@pytest.mark.parametrize("page_size", [2, None])
@pytest.mark.parametrize("name", CALLS)
def test_lanes_that_are_closed_amid_a_call_give_back_their_pages_and_no_others(
    name: str, page_size: int | None
) -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=(3, None))
    spec = CacheSpec.from_config(config, max_context=40, page_size=page_size, max_chunk=5, max_lanes=5)
    line, more = 0, True
    while more:
        line += 1
        manager = CacheManager(spec)
        first, lane = manager.open(), manager.open()
        manager.plan([Chunk(first, [0] * 5), Chunk(lane, [0] * 5)])
        garbage = [first, manager.fork(lane)]
        more = interrupted(partial(CALLS[name], manager, lane), line, partial(close, manager, garbage))
        held = [{page for lane in manager.lanes for page in manager.pages(lane)[index]} for index in range(2)]
        new = manager.open()
        manager.plan([Chunk(new, [0] * 5)])
        assert not any(set(pages) & others for pages, others in zip(manager.pages(new), held, strict=True))
        close(manager, list(manager.lanes))
        assert [manager.pages_in_use(index) for index in range(2)] == [0, 0]
    assert line > 5


BUDGETED: dict[str, Callable[[CacheManager, int], Any]] = {
    **CALLS,
    "resume": lambda manager, lane: manager.resume([0, 0, 0, 4, 4, 4]),
    "keep": lambda manager, lane: manager.keep(lane, [0] * 5),
    "forget": lambda manager, lane: manager.forget(),
}


@pytest.mark.parametrize("page_size", [2, None])
@pytest.mark.parametrize("name", BUDGETED)
def test_a_text_that_is_kept_amid_a_call_is_found(name: str, page_size: int | None) -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=(3, None))
    spec = CacheSpec.from_config(config, max_context=40, page_size=page_size, max_chunk=5, max_lanes=6)
    text = [0, 0, 0, 1, 2]

    def leave(manager: CacheManager, lane: int) -> None:
        manager.keep(lane, text)
        manager.close(lane)

    line, more = 0, True
    while more:
        line += 1
        manager = CacheManager(spec, budget=CacheBudget(1000, (1, 1)))
        known, _ = manager.resume([0] * 5)
        manager.plan([Chunk(known, [0] * 5)])
        manager.keep(known, [0] * 5)
        garbage, _ = manager.resume(text)
        manager.plan([Chunk(garbage, text[manager.length(garbage) :])])
        lane, _ = manager.resume([4] * 5)
        manager.plan([Chunk(lane, [4] * 5)])
        more = interrupted(partial(BUDGETED[name], manager, lane), line, partial(leave, manager, garbage))
        if more and name != "forget":
            manager.close(manager.open())  # what came at the very end of a call is seen to at the end of the next one
            assert manager.resume([*text, 9])[1] == 5
        close(manager, list(manager.lanes))
        manager.forget()
        assert [manager.pages_in_use(index) for index in range(2)] == [0, 0]
    assert line > 5
