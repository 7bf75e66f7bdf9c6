"""`where`: the path of a model on this machine."""

import os

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.model_name import hub_name, named, placed
from mistral_portable.cli.options import ModelArgument, NamedOption, RevisionOption
from mistral_portable.cli.output import printable
from mistral_portable.errors import CheckpointError
from mistral_portable.weights import open_checkpoint
from mistral_portable.weights.hub_cache import CachedModel, read_cache

__all__ = ["where"]


def where(
    model: ModelArgument = None,
    name: NamedOption = None,
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the path of a model: of one from the hub that in the cache. Nothing is downloaded."""
    [model] = placed(name, model)
    model = named(model)
    if model == "tiny":
        path = str(open_checkpoint(model).path)
    elif os.path.exists(model):
        path = os.path.abspath(model)
    else:
        path = str(_cached(model, revision).path)
    typer.echo(printable(path))


def _cached(model: str, revision: str | None) -> CachedModel:
    """The model that `run` would open: "main" unless a revision is given. Raises CheckpointError if it is not there."""
    repository, file = hub_name(model)
    cache = read_cache()
    found = cache.find(repository, file, revision or "main")
    if not found:
        others = ", ".join(other.revision for other in cache.find(repository, file, None))
        hint = f"--revision may be {others}" if others else "'list' shows what is, 'pull' downloads"
        raise CheckpointError(f"{model}, revision {revision or 'main'}: not in {cache.folder}; {hint}")
    return found[0]
