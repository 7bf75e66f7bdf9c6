"""Ctrl-C and SIGTERM: exit status 130 and 143 from the first line of ours to the last, never a traceback.

Three times of a command differ. While it starts, nothing is lost: the process ends at once, since an exception amid an
import may come out as another one. While it works, an exception lets files and threads be cleaned up. A signal that
comes during that, or that was lost in somebody's `except`, ends the process at once, too.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

__all__ = ["Signals"]


class Signals:
    """Handles Ctrl-C and SIGTERM for a command: `with Signals().handled(): ...`."""

    def __init__(self) -> None:
        self.received = 0
        """The number of the signal that ends the command; 0: none has come."""
        self._raises = False
        self._held: list[int] | None = None
        """The signals that wait for the end of the block of `held`; None: outside of it."""

    @property
    def status(self) -> int:
        """The exit status that the signal asks for."""
        return 128 + self.received

    @contextmanager
    def handled(self, *, for_good: bool) -> Iterator[None]:
        """Handle the signals in the block; for_good: also behind it, until the process has ended.

        A signal that is ignored (`nohup`, a job in the background) stays so. Other threads than the main one, to which
        Python gives no signals, change nothing.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._handle)
        hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._hook = hook
        try:
            yield
        finally:
            self._raises = False
            if not for_good:
                sys.unraisablehook = hook
                for number, handler in before.items():
                    signal.signal(number, handler)

    def work(self) -> None:
        """Say that the command works from now on: a signal is an exception, KeyboardInterrupt or SystemExit."""
        self._raises = True

    def go_on(self) -> None:
        """Say that a Ctrl-C was meant for a part of the work, which goes on."""
        self.received = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal that comes in the block wait until it has ended: what it does must not stay half done."""
        self._held = []
        try:
            yield
        finally:
            late, self._held = self._held, None
        if late:
            self._handle(late[0], None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held is not None:
            self._held.append(number)
            return
        if self.received or not self._raises:
            self._leave(number)
        self.received = number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(self.status)

    def _unraisable(self, caught: "sys.UnraisableHookArgs") -> None:
        """End the process where Python would drop the signal's exception, with a traceback: in finalizers."""
        if self.received and issubclass(caught.exc_type, KeyboardInterrupt | SystemExit):
            self._leave(self.received)
        self._hook(caught)

    @staticmethod
    def _leave(number: int) -> NoReturn:
        if sys.stderr is not None and sys.stderr.isatty():
            os.write(2, b"\x1b[?25h")  # a progress bar has hidden the cursor
        os._exit(128 + number)
