"""PATH[=SCALE]: how an adapter stands on the command line."""

import math
from pathlib import Path

import typer

__all__ = ["scaled_path"]


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
