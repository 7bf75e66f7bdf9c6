"""Child processes that compile kernels and hand the objects to their parent through a pipe, so no disk is needed.

A child's output is, for each kernel, a line of a mark, its name and the object's size, and the object.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

import mistral_portable
import mistral_portable_numba
from mistral_portable.errors import BackendError
from mistral_portable_numba.compiler.isa import Isa

__all__ = ["child_environment", "compiled", "send"]

_MARK = b"\0object "
_Objects = SimpleQueue[tuple[str, bytes] | None]
"""Names and objects; None when a child has ended."""


def send(name: str, code: bytes) -> None:
    """Hand an object to the parent of this process."""
    sys.stdout.buffer.write(_MARK + f"{name} {len(code)}\n".encode() + code)
    sys.stdout.buffer.flush()


def compiled(names: list[str], isa: Isa) -> Generator[tuple[str, bytes]]:
    """Compile kernels in two processes: the name and the object of each, as soon as it is made.

    Closing the iterator ends the processes. Raises BackendError if one fails.
    """
    # Formats with blocks of 256 columns take about ten times as long as the others, so they are dealt out first.
    ordered = sorted(names, key=lambda name: (not name.startswith("linear_"), not name.endswith(("_k", "_xs")), name))
    made: _Objects = SimpleQueue()
    children: list[_Child] = []
    try:
        for share in filter(None, (ordered[::2], ordered[1::2])):
            children.append(_Child(_start(isa, share), made))
        running = len(children)
        while running:
            found = made.get()
            if found is None:
                running -= 1
            else:
                yield found
        for child in children:
            child.check()
    finally:
        for child in children:
            child.end()


@dataclass
class _Child:
    """A compiling process, and the threads that read what it writes, since a pipe that nobody reads fills up."""

    process: "subprocess.Popen[bytes]"
    made: _Objects
    errors: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_objects, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def check(self) -> None:
        """Raise BackendError, with the last line of what it said, unless the process ended well."""
        status = self.process.wait()
        self._readers[1].join()
        if status:
            lines = b"".join(self.errors).decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
            raise BackendError(f"backend 'numba' could not compile its kernels: {lines[-1]}")

    def end(self) -> None:
        """End the process, if it still runs."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()

    def _read_objects(self) -> None:
        assert self.process.stdout is not None
        try:
            with self.process.stdout as pipe:
                for line in pipe:
                    if not line.startswith(_MARK):  # what a module has printed while it was imported
                        continue
                    name, size = line[len(_MARK) :].split()
                    code = pipe.read(int(size))
                    if len(code) == int(size):  # else the process died
                        self.made.put((name.decode(), code))
        finally:
            self.made.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as pipe:
            self.errors.extend(pipe)


def child_environment() -> dict[str, str]:
    """The environment in which a child process imports this package from where it is, installed or not."""
    roots = {str(Path(module.__file__ or "").parent.parent) for module in (mistral_portable, mistral_portable_numba)}
    path = [os.environ.get("PYTHONPATH", ""), *(root for root in sorted(roots) if "site-packages" not in root)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def _start(isa: Isa, names: list[str]) -> "subprocess.Popen[bytes]":
    """Start a compiling process."""
    # -P: Python then does not import a numba.py, say, of the user's current folder.
    command = [sys.executable, "-Pm", "mistral_portable_numba.compiler", isa.name, *names]
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment())
    except OSError as error:
        raise BackendError(f"backend 'numba' cannot start {command[0] or 'Python'} to compile: {error}") from error
