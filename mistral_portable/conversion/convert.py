"""convert(): writes a checkpoint in another format, a tensor at a time; the result appears when it is complete."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from mistral_portable.adapters import merge, open_adapter
from mistral_portable.config import Window
from mistral_portable.conversion.gguf import plan_gguf, write_gguf
from mistral_portable.conversion.hf import plan_hf, plan_mlx, write_hf, write_mlx
from mistral_portable.conversion.model import Source, missing_in_target, prepare
from mistral_portable.conversion.parts import FLOATS, Part, Progress, is_float, reporter
from mistral_portable.conversion.raw import plan_raw, write_raw
from mistral_portable.conversion.target import path_of, placed, require_apart, require_free
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
"""Functions by format: one plans the arrays to write, the other writes them into a folder, or a file for "gguf"."""


def convert(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    window: Window | Literal["config"] = "config",
    merge_adapters: Sequence[tuple[str | Path, float]] = (),
    overwrite: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a checkpoint in another format, with its tokenizer, chat template and config; returns the destination.

    source: a model, in every form that `load` takes.
    destination: a folder, or a file for "gguf"; missing parent folders are created.
    to: "hf", "gguf", "raw" or "mlx".
    dtype: "float32", "float16" or "bfloat16" for all weights. By default floats keep their type and bits, and packed
    weights that the format cannot hold are unpacked to float32, which is exact.
    window: the window of the written config, as for `load`.
    merge_adapters: LoRA adapters to add to the weights, each with a factor, usually 1; several are summed. Weights that
    are packed are unpacked for it if `dtype` is given.
    overwrite: replace the destination if it is a checkpoint.
    revision: branch, tag or commit of a hub repository.
    progress: called as (what, bytes done, bytes in total).

    Memory: one tensor. Everything is written into a folder beside the destination that ends in ".partial", and moved
    when it is complete; the folder is removed on errors. Notices for the user are issued as warnings.

    Raises CheckpointError, ConfigError, InputError or TokenizerError.
    """
    if to not in FORMATS:
        raise InputError(f"to={to!r}: choose one of {', '.join(FORMATS)}")
    if dtype is not None and dtype not in FLOATS:
        raise InputError(f"dtype={dtype!r}: choose one of {', '.join(FLOATS)}")
    destination = path_of(destination)
    require_free(destination, to, overwrite)
    checkpoint = open_checkpoint(source, revision=revision, progress=progress)
    require_apart(destination, checkpoint.path, *(Path(path) for path, _ in merge_adapters))
    notices = checkpoint.notices if window == "config" else ()
    if merge_adapters:
        adapters = [(open_adapter(path, checkpoint.config), factor) for path, factor in merge_adapters]
        checkpoint, of_merging = merge(checkpoint, adapters, unpack=dtype is not None)
        notices += of_merging
    config = checkpoint.config if window == "config" else checkpoint.config.with_window(window)
    model = prepare(checkpoint, config, dtype)
    plan, write = FORMATS[to]
    parts = plan(model)
    for notice in (*notices, *model.notices, *_unpacked(model, parts), *missing_in_target(model, to)):
        warnings.warn(notice, stacklevel=2)
    with placed(destination, to, overwrite) as result:
        if to != "gguf":
            result.mkdir()
        write(result, model, parts, reporter(parts, progress))
        prepare(open_checkpoint(result), model.config, None)  # verifies that the written files load
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
