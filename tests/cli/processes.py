"""Three ways to run the command line: in this process, in one of its own, and on a pseudo-terminal."""

import io
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Self
from unittest.mock import patch

import pytest

import mistral_portable as mp
from mistral_portable.cli import main

COMMAND = [sys.executable, "-m", "mistral_portable"]
# Nobody answers where the cursor is, which prompt_toolkit would ask.
_STATE = tempfile.TemporaryDirectory()  # where `chat` keeps its history
_ENVIRONMENT = os.environ | {
    "TERM": "xterm",
    "NO_COLOR": "1",
    "PROMPT_TOOLKIT_NO_CPR": "1",
    "XDG_STATE_HOME": _STATE.name,
}
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
_LAUNCHER = """
import signal, subprocess, sys
process = subprocess.Popen(sys.argv[1:], start_new_session=True)
signal.signal(signal.SIGINT, lambda *_: process.send_signal(signal.SIGINT))
sys.exit(process.wait())
"""
_PATIENCE = 120  # seconds; the machines that run this are shared


@dataclass(frozen=True)
class Result:
    """The output of a command and its exit status."""

    status: int
    out: str
    err: str


@cache
def compile_kernels() -> None:
    """Compile the built-in model's kernels where that was not done yet: a command would say so on stderr."""
    mp.load("tiny").close()


def invoke(*arguments: str, stdin: bytes = b"") -> Result:
    """Call `main` in this process; no stream is a terminal."""
    compile_kernels()
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
    piped = patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
    with redirect_stdout(out), redirect_stderr(err), piped, pytest.raises(SystemExit) as left:
        main(list(arguments))
    texts = []
    for stream in (out, err):
        stream.flush()
        stream.seek(0)
        texts.append(stream.read())
    return Result(left.value.code if isinstance(left.value.code, int) else 0, *texts)


def run_process(*arguments: str, stdin: bytes = b"") -> Result:
    """Run `python -m mistral_portable` with pipes."""
    compile_kernels()
    done = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=_PATIENCE)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


class Terminal:
    """`python -m mistral_portable` with stdin, stdout and stderr on a pseudo-terminal.

    >>> with Terminal("chat") as terminal:
    ...     terminal.expect("> ")
    ...     terminal.press("/exit\\n")
    ...     assert terminal.wait() == 0
    """

    def __init__(
        self,
        *arguments: str,
        columns: int = 80,
        environment: Mapping[str, str] | None = None,
        launched: bool = False,
    ) -> None:
        """launched: as torchrun does it, in a session of its own, by a process that passes Ctrl-C on."""
        import pty

        self.text = ""
        """The text that it has shown, without control sequences."""
        self.raw = ""
        self._read_up_to = 0
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background has it ignored, and so its children
            launcher = [sys.executable, "-c", _LAUNCHER] if launched else []
            command = [*launcher, *COMMAND, *arguments]
            os.execve(command[0], command, {**_ENVIRONMENT, **(environment or {})})
        self.resize(columns)

    def resize(self, columns: int) -> None:
        """Make the terminal so wide; the process gets SIGWINCH."""
        import fcntl
        import termios

        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._pid

    def kill(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._pid, number)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed, as a shell expects it back."""
        import termios

        return bool(termios.tcgetattr(self._fd)[3] & termios.ECHO)

    def press(self, keys: str) -> None:
        """Press keys: "\\x03" is Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._fd, keys.encode())

    def expect(self, pattern: str) -> str:
        """Wait for a match of the regular expression after the previous one; returns the text up to its end."""
        end = time.monotonic() + _PATIENCE
        while not (found := re.compile(pattern).search(self.text, self._read_up_to)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.text[self._read_up_to :]!r}"
            assert self._read(), f"it ended without {pattern!r}: {self.text[self._read_up_to :]!r}"
        begin, self._read_up_to = self._read_up_to, found.end()
        return self.text[begin : self._read_up_to]

    def wait(self) -> int:
        """Read to the end; returns the exit status."""
        self.read_to_the_end()
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        return os.waitstatus_to_exitcode(status)

    def read_to_the_end(self) -> None:
        """Read until the process has ended."""
        end = time.monotonic() + _PATIENCE
        while self._read():
            assert time.monotonic() < end, f"it does not end: {self.text[-200:]!r}"

    def interrupt(self) -> int:
        """Press Ctrl-C each second until it ends; returns the exit status.

        readline loses a Ctrl-C that comes between its prompt and its wait for a key, and a person presses again.
        """
        ended = False
        for _ in range(_PATIENCE):
            if ended:
                break
            self.press("\x03")
            while not ended and select.select([self._fd], [], [], 1)[0]:
                ended = not self._read()
        return self.wait()

    def _read(self) -> bool:
        assert select.select([self._fd], [], [], _PATIENCE)[0], f"silence after {self.text!r}"
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux: EIO once the other side is closed
            return False
        self.raw += data.decode(errors="replace")
        # prompt_toolkit draws the space of "> " by a step to the left and two to the right.
        self.text = _CONTROL.sub("", self.raw.replace("\x08\x1b[2C", " "))
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid:
            os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
        os.close(self._fd)
