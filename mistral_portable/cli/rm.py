"""`rm`: remove a model from the hub's cache."""

import sys
from typing import Annotated

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.model_name import hub_name, named, placed
from mistral_portable.cli.options import ModelArgument, NamedOption, RevisionOption
from mistral_portable.cli.output import note, one_line, size
from mistral_portable.cli.stdin import is_terminal
from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.weights.hub_cache import read_cache, remove

__all__ = ["rm"]


def rm(
    *,
    context: typer.Context,
    model: ModelArgument = None,
    name: NamedOption = None,
    revision: RevisionOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: DebugOption = False,
) -> None:
    """Remove a model, owner/name with all of its files or owner/name:file.gguf, from the hub's cache."""
    [model] = placed(name, model)
    model = named(model)
    repository, file = hub_name(model)
    cache = read_cache()
    removal = cache.removal(repository, file, revision)
    what = f"{model}, revision {revision}" if revision else model
    if removal is None:
        raise CheckpointError(f"{what}: not in {cache.folder}; 'list' shows what is")
    freed = size(removal.expected_freed_size)
    if not yes and not _agrees(f"Remove {what} ({freed})? [y/N] "):
        note("note: nothing was removed")
        raise typer.Exit(1)
    with context.obj.signals.held():
        remove(removal)
    typer.echo(one_line(f"{what}: removed, {freed}"))


def _agrees(question: str) -> bool:
    """Ask on a terminal. Raises InputError where nobody can be asked."""
    if not (is_terminal() and sys.stderr.isatty()):
        raise InputError("nobody can be asked here whether to remove it: give --yes")
    typer.echo(one_line(question) + " ", nl=False, err=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
