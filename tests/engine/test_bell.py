"""Bells: threads that wake coroutines."""

import asyncio
import threading

import pytest

from mistral_portable.engine.bell import Bell


def test_every_ring_sets_its_event() -> None:
    """Also where rings come from several threads, while the loop wakes and sleeps."""

    async def wait_for_all() -> None:
        bell, turns = Bell(asyncio.get_running_loop()), 300
        events = [[asyncio.Event() for _ in range(turns)] for _ in range(3)]
        threads = [threading.Thread(target=lambda some=some: [bell.ring(each) for each in some]) for some in events]
        for thread in threads:
            thread.start()
        for some in events:
            for event in some:
                await asyncio.wait_for(event.wait(), 60)
        for thread in threads:
            thread.join()

    asyncio.run(wait_for_all())


def test_a_ring_in_a_busy_loop_joins_the_one_before() -> None:
    async def count_wakes() -> int:
        loop = asyncio.get_running_loop()
        wakes, call = [], loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: (wakes.append(1), call(*given))[1]  # type: ignore[method-assign]
        bell, events = Bell(loop), [asyncio.Event() for _ in range(8)]
        for event in events:  # the loop is busy with this
            bell.ring(event)
        for event in events:
            await event.wait()
        return len(wakes)

    assert asyncio.run(count_wakes()) == 1


def test_a_closed_loop_is_said_each_time() -> None:
    loop = asyncio.new_event_loop()
    bell = Bell(loop)
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            bell.ring(asyncio.Event())
    del loop
    with pytest.raises(RuntimeError, match="the event loop is gone"):
        bell.ring(asyncio.Event())
