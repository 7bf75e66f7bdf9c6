"""PATH[=SCALE]: how an adapter stands on the command line."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import typer

from mistral_portable.weights.adapter_files import FIXED_NAMES

__all__ = ["adapters_of", "scaled_path"]


def scaled_path(text: str, option: str) -> tuple[str, float]:
    """The path of an adapter, and its factor: "style=0.5" -> ("style", 0.5), "style" -> ("style", 1.0).

    A path that exists is taken as it is. Raises typer.BadParameter, which names the option, for other factors.
    """
    path, sign, scale = text.rpartition("=")
    if not sign or os.path.exists(text):
        return text, 1.0
    try:
        factor = float(scale)
    except ValueError:
        factor = math.nan
    if not path or not math.isfinite(factor):
        raise typer.BadParameter(f"{text!r} is not PATH or PATH=SCALE with a finite number", param_hint=option)
    return path, factor


def adapters_of(texts: Sequence[str]) -> dict[str, tuple[str, float]]:
    """The values of `--adapter`: path and factor by name, which is the folder's; the file's for those of one file.

    "loras/sql=0.5" -> {"sql": ("loras/sql", 0.5)}. Raises typer.BadParameter for two of one name, or an empty path.
    """
    found: dict[str, tuple[str, float]] = {}
    for text in texts:
        path, factor = scaled_path(text, "'--adapter'")
        if not path:
            raise typer.BadParameter("give the path of an adapter", param_hint="'--adapter'")
        file = Path(path).resolve()
        name = file.parent.name if file.name in FIXED_NAMES else file.name
        name = name.removesuffix(".gguf").removesuffix(".safetensors")
        if name in found:
            raise typer.BadParameter(
                f"{name!r} is the name of two: give folders or files of different names", param_hint="'--adapter'"
            )
        found[name] = path, factor
    return found
