"""Lines that are typed on a terminal, with editing, pasting and a history that outlives the process."""

import os
import sys
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import create_output

from mistral_portable.cli.output import note

__all__ = ["TypedLines", "history_file"]


def history_file() -> Path:
    """The file of the history, in the user's folder of state."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "mistral_portable" / "chat_history"


class TypedLines:
    """Reads lines: `read("> ")`. Ctrl-C empties a line; where there is nothing to lose it raises KeyboardInterrupt."""

    def __init__(self) -> None:
        # stdout takes the answers only, if it is a file.
        output = None if sys.stdout.isatty() else create_output(stdout=sys.stderr)
        self._session: PromptSession[str] = PromptSession(
            history=_history(history_file()), output=output, enable_history_search=True
        )

    def read(self, prompt: str) -> str | None:
        """Read a line; None for Ctrl-D. A line that is pasted may hold newlines."""
        while True:
            try:
                line = self._session.prompt(prompt)
                line.encode()
                return line
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self._session.default_buffer.text:
                    raise
            except UnicodeEncodeError:
                note("error: what was typed is not UTF-8")


def _history(file: Path) -> History:
    """The history in a file that nobody else may read; where it cannot be, one of this process."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        note(f"note: what you type is not kept: {file}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(str(file))
