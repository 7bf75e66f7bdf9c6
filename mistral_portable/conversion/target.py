"""The destination of a conversion: checks it, and moves the result there when it is complete."""

import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mistral_portable.errors import CheckpointError, InputError

__all__ = ["path_of", "placed", "require_apart", "require_free"]


@contextmanager
def placed(destination: Path, to: str, overwrite: bool) -> Iterator[Path]:
    """A context with a path to write to, in a new folder beside the destination that ends in ".partial".

    After the block the result is renamed into place, which is atomic within a file system. On errors the folder is
    removed, and the destination is left unchanged. Raises InputError if `require_free` does or if nothing can be
    written there, and CheckpointError if the block raises OSError.
    """
    with _staging(destination) as staging:
        result = staging / destination.name
        yield result
        require_free(destination, to, overwrite)
        _put(result, destination, staging / "replaced")


def path_of(destination: object) -> Path:
    """The destination as a path. Raises InputError for what is none."""
    if not isinstance(destination, str | Path):
        raise InputError(f"destination={destination!r:.40} must be a path")
    return Path(destination)


def require_apart(destination: Path, *sources: Path) -> None:
    """Raise InputError if the destination is one of the sources, or contains one."""
    for source in (path.resolve() for path in sources):
        if destination.exists() and destination.resolve() in (source, *source.parents):
            raise InputError(f"{destination} holds the source; choose another destination")


def require_free(destination: Path, to: str, overwrite: bool) -> None:
    """Raise InputError if the destination exists; with `overwrite` only if it is no checkpoint of the format `to`."""
    if not destination.exists() and not destination.is_symlink():
        return
    if not overwrite:
        raise InputError(f"{destination} exists already; choose another destination, or overwrite it (--overwrite)")
    fits = _is_gguf(destination) if to == "gguf" else _is_checkpoint_folder(destination)
    if destination.is_symlink() or not fits:
        kind = "a GGUF file" if to == "gguf" else "a folder with weights and config.json or params.json"
        raise InputError(f"{destination} is not {kind}, and is not overwritten; choose another destination")


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder has a config and weights: other kinds of folders may have a config.json, too."""
    names = {entry.name for entry in path.iterdir() if entry.is_file()} if path.is_dir() else set()
    return bool(names & {"config.json", "params.json"}) and any(
        name.endswith((".safetensors", ".pth", ".pt")) for name in names
    )


def _put(result: Path, destination: Path, replaced: Path) -> None:
    """Rename into place. A folder cannot replace another by renaming: the old one is moved away, and back on errors."""
    if result.is_file():
        result.replace(destination)
        return
    try:
        if destination.exists():
            destination.rename(replaced)
        result.rename(destination)
    except BaseException:
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        raise


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """A new folder beside the destination, removed at the end."""
    staging = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    except OSError as error:
        raise InputError(f"{destination}: cannot be written: {error.strerror}; choose another destination") from error
    try:
        yield staging
    except OSError as error:
        # NumPy says of a full disk only how much it has written.
        full = re.fullmatch(r"\d+ requested and \d+ written", str(error))
        reason = f"No space left on device, or a limit is reached ({error})" if full else error.strerror or error
        raise CheckpointError(f"{destination}: cannot be written: {reason}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
