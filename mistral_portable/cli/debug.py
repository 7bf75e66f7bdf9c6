"""--debug, and the settings of the application."""

from dataclasses import dataclass, field
from typing import Annotated

import typer

from mistral_portable.cli.signals import Signals

__all__ = ["DebugOption", "Settings"]


@dataclass
class Settings:
    """Settings that typer gives to each command as `context.obj`; the error handling needs them, too."""

    signals: Signals = field(default_factory=Signals)
    debug: bool = False


def _set_debug(context: typer.Context, debug: bool) -> None:
    context.obj.debug |= debug


DebugOption = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show the traceback of an error.")]
