"""`pull`: download a model from the hub into its cache."""

from contextlib import suppress

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.loading import downloading
from mistral_portable.cli.model_name import hub_name, named, placed
from mistral_portable.cli.options import ModelArgument, NamedOption, RevisionOption
from mistral_portable.cli.output import note, printable, size
from mistral_portable.errors import CheckpointError
from mistral_portable.weights import open_config
from mistral_portable.weights.hub import download, offline, reporter
from mistral_portable.weights.hub_cache import read_cache

__all__ = ["pull"]


def pull(
    model: ModelArgument = None,
    name: NamedOption = None,
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Download a model, owner/name or owner/name:file.gguf, into the hub's cache, from where all commands open it."""
    [model] = placed(name, model)
    model = named(model)
    repository, file = hub_name(model)
    with downloading(f"pulling {model}") as progress:
        if file is None:
            with suppress(CheckpointError):  # `download` says better what is wrong
                # Before the gigabytes of a model of another kind.
                open_config(repository, revision=revision, tqdm_class=reporter("config.json", progress))
        path = download(repository, file, revision, progress)
    if offline():
        note("note: HF_HUB_OFFLINE is set: the hub was not asked, this is what the cache holds")
    [found] = [own for own in read_cache().find(repository, file, None) if path.is_relative_to(own.path)]
    typer.echo(printable(f"{model}: {size(found.size)} in {found.path}"))
