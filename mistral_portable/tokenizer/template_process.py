"""TemplateProcess: a child process that runs one chat template, and can be stopped."""

import contextlib
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from mistral_portable.errors import TokenizerError
from mistral_portable.forks import make_locks

__all__ = ["RefusedError", "TemplateProcess"]

_WORKER = Path(__file__).with_name("template_worker.py")
_LIMITS = {"seconds": 2.0, "memory": 2**30, "length": 2**24}
_WALL_SECONDS = 60.0  # where the system counts no CPU time of a process, or the process does not get any


class RefusedError(TokenizerError):
    """The template itself does not take the chat, or fails at it."""


class TemplateProcess:
    """Renders a Jinja template in a process of its own, which has nothing to open, write or start.

    A chat may take 2 s of CPU time, 1 GiB of memory and 16 Mi characters; the process that takes more ends, and the
    next chat starts another one. It starts with the first chat, which takes 0.15 s; a later one takes 0.4 ms, and one
    of 1 MB 15 ms.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        make_locks(self, TemplateProcess._make_lock)

    def _make_lock(self) -> None:
        self._lock = Lock()

    def render(self, variables: dict[str, Any]) -> str:
        """The text that the template makes of variables, values of JSON.

        Raises TokenizerError, in one line: RefusedError for what the template refuses and for its own faults, others
        beyond the limits.
        """
        try:
            request = json.dumps(variables)
        except (TypeError, ValueError, RecursionError) as error:
            raise TokenizerError(f"the messages or tools are not JSON ({error}); send plainer ones") from error
        with self._lock:
            answer = self._ask(request)
        if not answer:
            limits = f"{_LIMITS['seconds']:g} s of CPU time or {int(_LIMITS['memory']) >> 20} MiB of memory"
            raise TokenizerError(f"the chat template was stopped: it takes more than {limits}; give another one")
        found = json.loads(answer)
        if "error" in found:
            raise RefusedError(f"the chat template refuses this chat: {found['error']}")
        text: str = found["text"]
        return text

    def _ask(self, request: str) -> str:
        """The answer's line; "" if the process has ended."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        watch = Timer(_WALL_SECONDS, process.kill)
        watch.daemon = True
        watch.start()
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it ended before it had read all
            answer = ""
        except BaseException:  # Ctrl-C: what it answers now is no later chat's
            _stop(process)
            raise
        finally:
            watch.cancel()
        if not answer:
            _stop(process)
        return answer

    def _running(self) -> "subprocess.Popen[str]":
        """The process; a new one if there is none, if it has ended, or if it is that of the parent of a fork."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            command = [sys.executable, "-I", str(_WORKER)]
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    encoding="utf-8",
                    env={name: value for name, value in os.environ.items() if name in ("SYSTEMROOT", "TZ", "PATH")},
                )
            except OSError as error:
                raise TokenizerError(f"no process for the chat template can be started: {error}") from error
            self._process, self._owner = process, os.getpid()
            # When this process ends, the other one finds the end of its input.
            weakref.finalize(self, _stop, process).atexit = False
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # found out by the first chat
                process.stdin.write(json.dumps([self._template, _LIMITS]) + "\n")
        return self._process


def _stop(process: "subprocess.Popen[str]") -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
