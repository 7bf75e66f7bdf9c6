"""Opening a checkpoint or loading a model, with a progress bar on a terminal and the notes that go with it."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TaskProgressColumn, TextColumn

from mistral_portable.cli.options import ModelOptions
from mistral_portable.cli.output import note, one_line
from mistral_portable.engine import Model, load
from mistral_portable.engine.block_maker import block_maker
from mistral_portable.weights import Checkpoint, open_checkpoint

__all__ = ["load_model", "open_model", "reading", "working"]


def load_model(options: ModelOptions, **more: Any) -> Model:
    """`mistral_portable.load`, with `more` arguments; its warnings become notes on stderr."""
    arguments = options.arguments()
    with reading(f"loading {options.model}") as progress:
        return load(**arguments, **more, progress=progress)


def open_model(model: str, revision: str | None, quantize: str | None = None) -> Checkpoint:
    """`open_checkpoint`; its notices become notes on stderr. No weights are read."""
    with reading(f"opening {model}") as progress:
        checkpoint = open_checkpoint(model, revision=revision, quantize=quantize, make=block_maker(), progress=progress)
    for notice in checkpoint.notices:
        note(f"note: {one_line(notice)}")
    return checkpoint


@contextmanager
def working(title: str) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr behind which the block can put what it is doing; nothing if stderr is no terminal."""
    with _bar(title) as (bar, task):
        yield lambda what: bar.update(task, description=one_line(f"{title}: {what}"))


@contextmanager
def reading(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A spinner that becomes a bar as long as the block reports how far it is, from any thread and in any unit.

    Warnings of the block become notes on stderr after it, if it does not fail.
    """
    with warnings.catch_warnings(record=True) as caught, _bar(title) as (bar, task):

        def report(what: str, done: int, total: int) -> None:
            text = f"{title}: {what}" if done < total else title
            bar.update(task, description=one_line(text), completed=done, total=total)

        yield report
    for warning in caught:
        note(f"note: {one_line(str(warning.message))}")


@contextmanager
def _bar(title: str) -> Iterator[tuple[Progress, TaskID]]:
    bar = Progress(
        SpinnerColumn(),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        yield bar, bar.add_task(one_line(title), total=None)
