"""A spinner on stderr that becomes a bar, if that is a terminal. Only there rich, which draws it, is imported."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mistral_portable.cli.output import aside, one_line

__all__ = ["Update", "bar"]

Update = Callable[[str, int | None, int | None], None]
"""Says (what is being done, how much is done, of how much); None: as before."""


@contextmanager
def bar(title: str, *, in_bytes: bool = False) -> Iterator[Update]:
    """Show a bar with this title; the block calls the function. in_bytes: with their number, and how many come in a
    second. Ctrl-C leaves a line that says what it has ended."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = [DownloadColumn(binary_units=True), TransferSpeedColumn()] if in_bytes else [TaskProgressColumn()]
    try:
        with Progress(
            SpinnerColumn(),
            BarColumn(),
            *columns,
            TextColumn("{task.description}", markup=False),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task(one_line(title), total=None)
            yield lambda what, done, total: progress.update(
                task, description=one_line(what), completed=done, total=total
            )
    except KeyboardInterrupt:
        aside(f"interrupted: {one_line(title)}")
        raise
