"""convert(): a checkpoint of any format, written in another, a tensor at a time, all of it or nothing."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from mistral_portable.config import Window
from mistral_portable.conversion.gguf import plan_gguf, write_gguf
from mistral_portable.conversion.hf import plan_hf, plan_mlx, write_hf, write_mlx
from mistral_portable.conversion.model import Source, missing_in_target, prepare
from mistral_portable.conversion.parts import FLOATS, Part, Progress, is_float, reporter
from mistral_portable.conversion.raw import plan_raw, write_raw
from mistral_portable.conversion.target import placed, require_apart, require_free
from mistral_portable.errors import InputError
from mistral_portable.weights import open_checkpoint

__all__ = ["FORMATS", "convert"]

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
    require_free(destination, to, overwrite)
    checkpoint = open_checkpoint(source, revision=revision, progress=progress)
    require_apart(destination, checkpoint)
    config = checkpoint.config if window == "config" else checkpoint.config.with_window(window)
    model = prepare(checkpoint, config, dtype)
    plan, write = FORMATS[to]
    parts = plan(model)
    inferred = checkpoint.notices if window == "config" else ()
    for notice in (*inferred, *model.notices, *_unpacked(model, parts), *missing_in_target(model, to)):
        warnings.warn(notice, stacklevel=2)
    with placed(destination, to, overwrite) as result:
        if to != "gguf":
            result.mkdir()
        write(result, model, parts, reporter(parts, progress))
        prepare(open_checkpoint(result), model.config, None)  # what was written loads, whatever the disk did
    return destination


def _unpacked(model: Source, parts: list[Part]) -> Iterator[str]:
    unpacked = [part for part in parts if part.dtype in FLOATS and not is_float(part.tensor)]
    if unpacked:
        kinds = ", ".join(sorted({part.tensor.dtype for part in unpacked}))
        hint = "" if model.dtype else "; dtype='bfloat16' (--dtype) takes half of that and rounds"
        yield (
            f"{len(unpacked)} matrices ({kinds}) are unpacked to {unpacked[0].dtype}, {FLOATS[unpacked[0].dtype]} "
            f"bytes a weight{hint}."
        )
