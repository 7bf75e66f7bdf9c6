"""Locks in forked processes: a child finds them free, whichever thread held them in its parent."""

import os
import weakref
from collections.abc import Callable
from typing import TypeVar

__all__ = ["make_locks"]

Owner = TypeVar("Owner")


def make_locks(owner: Owner, make: Callable[[Owner], None]) -> None:
    """Call make(owner), which creates the owner's locks: now, and again in each child that is forked later.

    A lock that another thread held at the fork would stay locked in the child, where that thread does not exist.
    """
    make(owner)
    _makers[owner] = make


_makers: "weakref.WeakKeyDictionary[object, Callable[..., None]]" = weakref.WeakKeyDictionary()


def _renew() -> None:
    for owner, make in list(_makers.items()):
        make(owner)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
