"""Bells: threads that wake coroutines."""

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from mistral_portable.engine.bell import Bell


def ring(bell: Bell, events: Iterable[asyncio.Event]) -> None:
    for event in events:
        bell.ring(event)


def test_every_ring_sets_its_event() -> None:
    """Also where rings come from several threads, while the loop wakes and sleeps."""

    async def wait_for_all() -> None:
        bell, turns = Bell(asyncio.get_running_loop()), 300
        events = [[asyncio.Event() for _ in range(turns)] for _ in range(3)]
        threads = [threading.Thread(target=ring, args=(bell, some)) for some in events]
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
        loop, wakes = asyncio.get_running_loop(), 0
        call = loop.call_soon_threadsafe

        def counted(*given: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return call(*given)

        loop.call_soon_threadsafe = counted  # type: ignore[assignment]
        bell, events = Bell(loop), [asyncio.Event() for _ in range(8)]
        for event in events:  # the loop is busy with this
            bell.ring(event)
        for event in events:
            await event.wait()
        return wakes

    assert asyncio.run(count_wakes()) == 1


def test_a_closed_loop_is_said_each_time() -> None:
    """Also one that was closed before it could wake."""
    for rung_before in (False, True):
        loop = asyncio.new_event_loop()
        bell = Bell(loop)
        if rung_before:
            bell.ring(asyncio.Event())
        loop.close()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the event loop is closed"):
                bell.ring(asyncio.Event())
        del loop
        with pytest.raises(RuntimeError, match="the event loop is closed"):
            bell.ring(asyncio.Event())
