"""`backends`: list the executors, and whether each can run here."""

import json

import typer

from mistral_portable.boundary.registry import candidates
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.options import JsonOption
from mistral_portable.cli.table import print_table

__all__ = ["backends"]


def backends(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the executors: which can run here, on what, and why not."""
    known = candidates()
    rows = [
        {
            "name": candidate.name,
            "usable": candidate.availability.score > 0,
            "auto": candidate is known[0],  # the best score
            "score": candidate.availability.score,
            "reason": candidate.availability.reason,
        }
        for candidate in known
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    print_table(
        ["backend", "usable", "score", "what or why not"],
        [[_name(row), "yes" if row["usable"] else "no", str(row["score"]), str(row["reason"])] for row in rows],
        right=["score"],
    )


def _name(row: dict[str, object]) -> str:
    return f"{row['name']} (auto)" if row["auto"] else str(row["name"])
