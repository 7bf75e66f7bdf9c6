"""`batch`: answer a file of requests in OpenAI's batch format."""

from pathlib import Path
from typing import Annotated

import typer

from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import load_model, reading
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import CacheRamOption, ModelOption
from mistral_portable.cli.ranges import with_range

__all__ = ["batch"]


@grouped
def batch(
    *,
    requests: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one in a line.", show_default=False)],
    answers: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="Answers are appended as they come.", show_default=False)
    ],
    parallel: Annotated[int, typer.Option(metavar="N", **with_range("Requests that run at a time.", 1))] = 8,
    model: ModelOption = "tiny",
    options: ModelOptions,
    cache_ram: CacheRamOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer many requests, chats and texts, in OpenAI's batch format.

    A line of IN.jsonl is {"custom_id": "a", "url": "/v1/chat/completions", "method": "POST", "body": {...}}.
    Interrupted and started again, it goes on where it stopped. A request that fails gets a line that says why.
    """
    from mistral_portable.openai.batch import check_files, run_batch

    check_files(requests, answers)  # before a large model is loaded
    with (
        load_model(model, options, cache_ram=cache_ram, max_lanes=parallel) as loaded,
        reading(f"{loaded.backend} on {model}") as progress,
    ):
        result = run_batch(loaded, requests, answers, progress=progress)
    before = f", {result.before} were there before" if result.before else ""
    typer.echo(f"{result.answered} answered, {result.failed} failed{before}: {answers}", err=True)
