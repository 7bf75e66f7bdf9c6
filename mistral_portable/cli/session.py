"""The file of `--session`: read before an answer, written after it."""

import os
from pathlib import Path

from mistral_portable.cli.output import note, one_line
from mistral_portable.engine import Model
from mistral_portable.errors import CacheError, InputError

__all__ = ["resume"]


def resume(model: Model, file: str | None) -> bool:
    """Load a session, if the file is there; return whether it is.

    One of other weights or settings, or a damaged one, counts as absent, with a note: it will be replaced. Raises
    InputError for a file that is no session, which must not be, and for a folder that cannot be written.
    """
    if file is None:
        return False
    if not model.manager.keeps:
        raise InputError(f"--session {file}: nothing is kept with --cache-ram 0: leave one of them out")
    if not os.access(folder := Path(file).parent, os.W_OK):  # said now, not after the answer
        raise InputError(f"--session {file}: the folder {folder} cannot be written: choose another one")
    if not Path(file).exists():
        return False
    try:
        model.load_session(file)
    except CacheError as error:
        note(f"note: {one_line(str(error))} (it is ignored, and written anew)")
        return False
    return True
