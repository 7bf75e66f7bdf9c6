"""Tables on stdout."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mistral_portable.cli.output import one_line

__all__ = ["print_table"]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows under headings (none: no heading line); the columns named in `right` are aligned to the right."""
    table = Table(box=None, pad_edge=False, show_header=any(columns), padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(one_line, row))
    # In a pipe there is no width to fit into: one line per row, for grep.
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)
