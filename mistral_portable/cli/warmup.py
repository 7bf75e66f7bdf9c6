"""`warmup`: compile what a model needs on this machine, before somebody waits for it."""

import time
import warnings

import typer

from mistral_portable.boundary import COMPILING
from mistral_portable.cache import Chunk
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import loader
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import ModelArgument
from mistral_portable.errors import BackendError, NotKeptWarning

__all__ = ["warmup"]


@grouped
def warmup(*, model: ModelArgument = None, options: ModelOptions, debug: DebugOption = False) -> None:
    """Compile what a model needs on this machine, keep it for later starts, and try one token.

    For images and CI. Run it with the options that later starts have; what they need depends on them. It fails if what
    was compiled cannot be kept.
    """
    begin = time.perf_counter()
    compiled = 0

    def watch(what: str, done: int, total: int) -> None:
        nonlocal compiled
        if what == COMPILING and done == total:
            compiled += total

    with warnings.catch_warnings():
        warnings.simplefilter("error", NotKeptWarning)
        try:
            with loader(model or "tiny", options, watch=watch)() as loaded, loaded.lane() as lane:
                loaded.step([Chunk(lane, [0], range(1))])
                backend = loaded.backend
        except NotKeptWarning as error:
            raise BackendError(str(error)) from error
    what = f"{compiled} kernels compiled" if compiled else "nothing was to be compiled"
    typer.echo(f"{backend}: {what}; ready in {time.perf_counter() - begin:.1f} s")
