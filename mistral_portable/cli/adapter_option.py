"""PATH[=SCALE]: how an adapter stands on the command line."""

import math
from collections.abc import Sequence
from pathlib import Path

import typer

__all__ = ["adapters_of", "scaled_path"]


def scaled_path(text: str, option: str) -> tuple[str, float]:
    """The path of an adapter, and its factor: "style=0.5" -> ("style", 0.5), "style" -> ("style", 1.0).

    A path that exists is taken as it is. Raises typer.BadParameter, which names the option, for other factors.
    """
    path, sign, scale = text.rpartition("=")
    if not sign or Path(text).exists():
        return text, 1.0
    try:
        factor = float(scale)
    except ValueError:
        factor = math.nan
    if not path or not math.isfinite(factor):
        raise typer.BadParameter(f"{text!r} is not PATH or PATH=SCALE with a finite number", param_hint=option)
    return path, factor


def adapters_of(texts: Sequence[str]) -> dict[str, tuple[str, float]]:
    """The values of `--adapter`: path and factor by name, which is the file's or the folder's.

    "loras/sql=0.5" -> {"sql": ("loras/sql", 0.5)}. Raises typer.BadParameter for two of one name.
    """
    found: dict[str, tuple[str, float]] = {}
    for text in texts:
        path, factor = scaled_path(text, "--adapter")
        name = Path(path).resolve().name.removesuffix(".gguf").removesuffix(".safetensors")
        if name in found:
            raise typer.BadParameter(f"{name!r} is the name of two: rename one of them", param_hint="'--adapter'")
        found[name] = path, factor
    return found
