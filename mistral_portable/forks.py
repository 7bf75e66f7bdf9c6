"""Locks in forked processes: a child finds them free, whichever thread held them in its parent."""

import os
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

__all__ = ["make_locks"]

Owner = TypeVar("Owner")


class Lock(Protocol):
    """A lock that the thread which holds it may take again: threading.RLock."""

    def acquire(self) -> bool:
        """Wait for it."""

    def release(self) -> None:
        """Give it back."""


def make_locks(owner: Owner, make: Callable[[Owner], None], *, held: Callable[[Owner], Lock] | None = None) -> None:
    """Call make(owner), which creates the owner's locks: now, and again in each child that is forked later.

    A lock that another thread held at the fork would stay locked in the child, where that thread does not exist.

    held: returns a lock that is taken for the fork, so that the child finds what it guards whole. No other lock may be
    waited for by whoever holds it.
    """
    make(owner)
    _makers[owner] = make
    if held is not None:
        _guards[owner] = held


_makers: "weakref.WeakKeyDictionary[object, Callable[..., None]]" = weakref.WeakKeyDictionary()
_guards: "weakref.WeakKeyDictionary[object, Callable[..., Lock]]" = weakref.WeakKeyDictionary()
_taken: list[Lock] = []


def _take() -> None:
    for owner, held in list(_guards.items()):
        lock = held(owner)
        lock.acquire()
        _taken.append(lock)


def _release() -> None:
    while _taken:
        _taken.pop().release()


def _renew() -> None:
    _taken.clear()
    for owner, make in list(_makers.items()):
        make(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take, after_in_parent=_release, after_in_child=_renew)
