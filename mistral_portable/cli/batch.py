"""`batch`: answer a file of requests in OpenAI's batch format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import loader, reading
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import CacheRamOption, ModelOption
from mistral_portable.cli.ranges import with_range
from mistral_portable.cli.replica_options import ReplicaOptions

if TYPE_CHECKING:
    from mistral_portable.openai.batch import BatchResult

__all__ = ["batch"]


@grouped
def batch(
    *,
    requests: Annotated[
        str,
        typer.Argument(
            metavar="IN.jsonl",
            help="Requests, one in a line. With --ray also .parquet, a folder of files, or a URL.",
            show_default=False,
        ),
    ],
    answers: Annotated[
        str,
        typer.Argument(
            metavar="OUT.jsonl",
            help="Answers are appended as they come. With --ray also a folder or a URL, to which files are added.",
            show_default=False,
        ),
    ],
    parallel: Annotated[int, typer.Option(metavar="N", **with_range("Requests that run at a time.", 1))] = 8,
    model: ModelOption = "tiny",
    options: ModelOptions,
    scaling: ReplicaOptions,
    cache_ram: CacheRamOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer many requests, chats and texts, in OpenAI's batch format.

    A line of IN.jsonl is {"custom_id": "a", "url": "/v1/chat/completions", "method": "POST", "body": {...}}.
    Interrupted and started again, it goes on where it stopped. A request that fails gets a line that says why.
    """
    address = scaling.cluster(options)
    if address is None:
        result = _here(Path(requests), Path(answers), model, options, cache_ram, parallel)
    else:
        arguments = {**scaling.arguments(model, options, cache_ram), "max_lanes": parallel}
        from mistral_portable.scaling.batches import run_ray_batch

        with reading(f"{model} on Ray") as progress:
            result = run_ray_batch(
                requests,
                answers,
                arguments,
                address=address,
                replicas=scaling.replicas or 1,
                threads=scaling.threads_per_replica or 1,
                progress=progress,
            )
    before = f", {result.before} were there before" if result.before else ""
    typer.echo(f"{result.answered} answered, {result.failed} failed{before}: {answers}", err=True)


def _here(
    requests: Path, answers: Path, model: str, options: ModelOptions, cache_ram: str | None, parallel: int
) -> "BatchResult":
    from mistral_portable.openai.batch import check_files, run_batch

    load = loader(model, options, cache_ram=cache_ram, max_lanes=parallel)
    check_files(requests, answers)  # before a large model is loaded
    with (
        load() as loaded,
        reading(f"{loaded.backend} on {model}") as progress,
    ):
        return run_batch(loaded, requests, answers, progress=progress)
