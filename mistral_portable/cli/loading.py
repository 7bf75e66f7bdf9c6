"""Open a checkpoint or load a model, with a progress bar on a terminal; warnings become notes on stderr."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from threading import Timer
from typing import Any

from mistral_portable.cli.bar import bar
from mistral_portable.cli.collector import resting
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import cache_bytes_of
from mistral_portable.cli.output import note, one_line
from mistral_portable.engine import Model, load
from mistral_portable.engine.block_maker import block_maker
from mistral_portable.errors import MistralPortableError
from mistral_portable.weights import Checkpoint, open_checkpoint

__all__ = ["downloading", "loader", "open_model", "reading", "working"]

Report = Callable[[str, int, int], None]

_LASTS = 3.0  # seconds


def loader(
    model: str,
    options: ModelOptions,
    *,
    cache_ram: str | None = None,
    max_lanes: int = 8,
    embeddings: bool = False,
    by_name: bool = False,
    watch: Report | None = None,
) -> Callable[[], Model]:
    """Return what calls `mistral_portable.load` with the values of the options; its warnings become notes on stderr.

    Of several processes that share a model only the first one returns from here: call it before stdin is read, a port
    taken or a file written. The others load their parts now, and follow the first one to its end; all that they say are
    warnings of their executor.

    by_name: whether calls have adapters that they name, and no others; else all have those of the options. watch:
    called with all that is reported, too.

    Raises typer.BadParameter for a window or a size that cannot be read. What it returns raises the errors of `load`.
    """
    arguments = {
        **options.arguments,
        "model": model,
        "cache_bytes": cache_bytes_of(cache_ram),
        "max_lanes": max_lanes,
        "embeddings": embeddings,
    }
    if by_name:
        arguments["adapter"] = None
    if (options.tensor_parallel or 1) > 1 and os.environ.get("RANK", "0") != "0":
        _follow(arguments)

    def load_here() -> Model:
        with reading(f"loading {model}") as progress, resting():

            def report(what: str, done: int, total: int) -> None:
                progress(what, done, total)
                if watch is not None:
                    watch(what, done, total)

            return load(**arguments, progress=report)

    return load_here


def _follow(arguments: Mapping[str, Any]) -> None:
    """Load a model that another process drives. Raises SystemExit when that one ends, and the errors of `load`.

    Of warnings, those of an executor become notes, as they are of this process's device; all others the first process
    has, too.
    """
    rank, stderr = os.environ["RANK"], sys.stderr

    def say(message: Warning | str, *where: object, **more: object) -> None:
        print(f"note: process {rank}: {one_line(str(message))}", file=stderr, flush=True)

    try:
        with (
            open(os.devnull, "w") as nowhere,
            redirect_stdout(nowhere),
            redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=r"mistral_portable_\w+\.")
            warnings.showwarning = say
            load(**arguments)
    except MistralPortableError as error:
        raise type(error)(f"process {rank} of those that torchrun has started: {error}") from error


def open_model(model: str, revision: str | None, quantize: str | None = None) -> Checkpoint:
    """Call `open_checkpoint`, without reading weights; its notices become notes on stderr."""
    with reading(f"opening {model}") as progress:
        checkpoint = open_checkpoint(model, revision=revision, quantize=quantize, make=block_maker(), progress=progress)
    for notice in checkpoint.notices:
        note(f"note: {one_line(notice)}")
    return checkpoint


@contextmanager
def working(title: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner on stderr, if that is a terminal; the block calls the function to say what it is doing."""
    with bar(title) as update:
        yield lambda what: update(f"{title}: {what}", None, None)


def reading(title: str) -> AbstractContextManager[Report]:
    """Show a spinner, which becomes a bar while the block reports (what, done, total), from any thread, in any unit.
    Off a terminal, each `what` that lasts is a line.

    Warnings issued in the block become notes on stderr after it, unless it raises.
    """
    return _reading(title, in_bytes=False)


def downloading(title: str) -> AbstractContextManager[Report]:
    """Show the same for bytes, with their number and how many come in a second."""
    return _reading(title, in_bytes=True)


@contextmanager
def _reading(title: str, *, in_bytes: bool) -> Iterator[Report]:
    stages = _Stages()
    with warnings.catch_warnings(record=True) as caught, bar(title, in_bytes=in_bytes) as update:

        def report(what: str, done: int, total: int) -> None:
            update(f"{title}: {what}" if done < total else title, done, total)
            stages.report(f"{title}: {what}", done < total)

        try:
            yield report
        finally:
            stages.report("", False)
    for warning in caught:
        note(f"note: {one_line(str(warning.message))}")


class _Stages:
    """Notes, off a terminal, of what lasts: else a user who has sent stderr to a file sees nothing for minutes."""

    def __init__(self) -> None:
        self._name = ""
        self._timer: Timer | None = None

    def report(self, name: str, goes_on: bool) -> None:
        """Begin another stage, or end this one."""
        if sys.stderr.isatty() or (goes_on and name == self._name):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._name = name
        if goes_on:
            self._timer = Timer(_LASTS, note, [f"note: {one_line(name)}"])
            self._timer.daemon = True
            self._timer.start()
