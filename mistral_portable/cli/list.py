"""`list`: the models in the hub's cache."""

import json
from typing import Any

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.options import JsonOption
from mistral_portable.cli.output import note, one_line, size
from mistral_portable.cli.table import print_table
from mistral_portable.errors import MistralPortableError
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.hub_cache import CachedModel, read_cache

__all__ = ["list"]


def list(as_json: JsonOption = False, debug: DebugOption = False) -> None:
    """List the models in the hub's cache: their sizes, and which of them can be opened; 'tiny' is built in."""
    cache = read_cache()
    rows = [_row(model) for model in cache.models]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        print_table(
            ["model", "revision", "size", "downloaded", "format, or why it cannot be opened"],
            [
                [row["model"], _short(row["revision"]), size(row["bytes"]), row["downloaded"], row["opens"]]
                for row in rows
            ],
            right=["size"],
        )
    else:
        note(f"note: no model is in {cache.folder} yet: 'pull' downloads one")
    if cache.others:
        total = size(sum(cache.others))
        note(f"note: {len(cache.others)} data sets and spaces are there, too, {total}: see 'hf cache ls'")
    for fault in cache.faults:
        note(f"note: {one_line(fault)}")


def _row(model: CachedModel) -> dict[str, Any]:
    usable, opens = True, ""
    try:
        opens = open_checkpoint(model.path).format
    except MistralPortableError as error:
        usable, opens = False, str(error).removeprefix(f"{model.path}: ").removeprefix(f"{model.path}/")
    return {
        "model": model.name,
        "revision": model.revision,
        "bytes": model.size,
        "downloaded": model.modified,
        "usable": usable,
        "opens": opens if usable else f"no: {opens}",
        "path": str(model.path),
    }


def _short(revision: str) -> str:
    """A commit's first digits; other names of revisions as they are."""
    return revision[:12] if len(revision) == 40 else revision
