"""convert(): a checkpoint of any format, written in another, a tensor at a time, all of it or nothing."""

import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from mistral_portable.config import Window
from mistral_portable.conversion.gguf import plan_gguf, write_gguf
from mistral_portable.conversion.hf import plan_hf, plan_mlx, write_hf, write_mlx
from mistral_portable.conversion.model import Source, prepare
from mistral_portable.conversion.parts import FLOATS, Part, is_float
from mistral_portable.conversion.raw import plan_raw, write_raw
from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.weights import open_checkpoint

__all__ = ["FORMATS", "convert"]

_WINDOWLESS = {"gguf": "llama.cpp", "mlx": "mlx-lm"}
"""Formats whose usual reader attends to all tokens, whatever the file says (llama-cpp-python 0.3.36, mlx-lm 0.32)."""

Progress = Callable[[str, int, int], None]
Plan = Callable[[Source], list[Part]]
Write = Callable[[Path, Source, list[Part], Callable[[Part], None]], None]

FORMATS: dict[str, tuple[Plan, Write]] = {
    "hf": (plan_hf, write_hf),
    "gguf": (plan_gguf, write_gguf),
    "raw": (plan_raw, write_raw),
    "mlx": (plan_mlx, write_mlx),
}
"""Name -> what will be written, and the writing: of a folder, or of a file if it is "gguf"."""


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    window: Window | Literal["config"] = "config",
    overwrite: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint in another format, with its tokenizer, chat template and config; returns the destination.

    source: as for `load`. destination: a folder, for "gguf" a file; its parents are made. to: "hf", "gguf", "raw" or
    "mlx". dtype: "float32", "float16" or "bfloat16" for all weights; by default floats keep their type and bits, and
    packed weights that the format cannot hold are unpacked to float32, in which nothing is rounded. window: as for
    `load`, for the config that is written. overwrite: replace a destination that is a checkpoint. progress: called as
    (what, bytes done, in total).

    Memory: one tensor. The destination appears when it is complete: until then all is in a folder beside it that ends
    in ".partial", and that is removed if anything fails. Things that the user should know are issued as warnings.

    Raises MistralPortableError: CheckpointError, ConfigError, InputError or TokenizerError.
    """
    if to not in FORMATS:
        raise InputError(f"to={to!r}: choose one of {', '.join(FORMATS)}")
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype={dtype!r}: choose one of {', '.join(FLOATS)}")
    destination = Path(destination)
    _require_free(destination, to, overwrite)
    checkpoint = open_checkpoint(source, revision=revision, progress=progress)
    if destination.exists() and destination.resolve() in (
        checkpoint.path.resolve(),
        *checkpoint.path.resolve().parents,
    ):
        raise InputError(f"{destination} holds the source; choose another destination")
    config = checkpoint.config if window == "config" else checkpoint.config.with_window(window)
    model = prepare(checkpoint, config, dtype)
    plan, write = FORMATS[to]
    parts = plan(model)
    inferred = checkpoint.notices if window == "config" else ()
    for notice in (*inferred, *model.notices, *_notices(model, parts, to)):
        warnings.warn(notice, stacklevel=2)
    done, total = 0, sum(part.nbytes for part in parts)

    def report(part: Part) -> None:
        nonlocal done
        done += part.nbytes
        if progress:
            progress(part.name, done, total)

    with _staging(destination) as staging:
        result = staging / destination.name
        if to != "gguf":
            result.mkdir()
        write(result, model, parts, report)
        prepare(open_checkpoint(result), model.config, None)  # what was written loads, whatever the disk did
        _require_free(destination, to, overwrite)
        _put(result, destination, staging / "replaced")
    return destination


def _put(result: Path, destination: Path, replaced: Path) -> None:
    """Rename into place. A folder cannot be renamed onto another: the old one moves away, and back if that fails."""
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


def _notices(model: Source, parts: list[Part], to: str) -> Iterator[str]:
    unpacked = [part for part in parts if part.dtype in FLOATS and not is_float(part.tensor)]
    if unpacked:
        kinds = ", ".join(sorted({part.tensor.dtype for part in unpacked}))
        hint = "" if model.dtype else "; dtype='bfloat16' (--dtype) takes half of that and rounds"
        yield (
            f"{len(unpacked)} matrices ({kinds}) are unpacked to {unpacked[0].dtype}, {FLOATS[unpacked[0].dtype]} "
            f"bytes a weight{hint}."
        )
    if model.checkpoint.tokenizer is None:
        yield f"{model.checkpoint.path} has no tokenizer that can be carried over."
    applied = to == "mlx" and model.windowed  # of the llama classes, which know `layer_types`, mlx-lm's does
    window = model.one_window(to) if to in _WINDOWLESS and not applied else None
    if window is not None:
        yield (
            f"the window of {window} is written, but {_WINDOWLESS[to]} does not apply it to this architecture: "
            f"there answers differ after {window} tokens."
        )


def _require_free(destination: Path, to: str, overwrite: bool) -> None:
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
    """Whether it has a config and weights: many a folder of another kind has a config.json."""
    names = {entry.name for entry in path.iterdir() if entry.is_file()} if path.is_dir() else set()
    return bool(names & {"config.json", "params.json"}) and any(
        name.endswith((".safetensors", ".pth", ".pt")) for name in names
    )


@contextmanager
def _staging(destination: Path) -> Iterator[Path]:
    """A new folder beside the destination, removed at the end: renaming within a file system is atomic."""
    staging = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}.partial"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    except OSError as error:
        raise InputError(f"{destination}: cannot be written: {error.strerror}; choose another destination") from error
    try:
        yield staging
    except OSError as error:
        raise CheckpointError(f"{destination}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
