"""`batch`: answer a file of requests in OpenAI's batch format."""

from pathlib import Path
from typing import Annotated

import typer

from mistral_portable.cli.loading import load_model, reading
from mistral_portable.cli.options import (
    AttentionOption,
    BackendOption,
    CacheRamOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    KVCacheOption,
    MaxContextOption,
    ModelOption,
    QuantizeOption,
    RevisionOption,
    ThreadsOption,
    WindowOption,
)

__all__ = ["batch"]


def batch(
    requests: Annotated[Path, typer.Argument(metavar="IN.jsonl", help="Requests, one in a line.", show_default=False)],
    answers: Annotated[
        Path, typer.Argument(metavar="OUT.jsonl", help="Answers are appended as they come.", show_default=False)
    ],
    parallel: Annotated[int, typer.Option(help="Requests that run at a time.", min=1, metavar="N")] = 8,
    model: ModelOption = "tiny",
    backend: BackendOption = "auto",
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    kv_cache: KVCacheOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    window: WindowOption = "config",
    max_context: MaxContextOption = None,
    cache_ram: CacheRamOption = None,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    debug: DebugOption = False,
) -> None:
    """Answer many requests, chats and texts, in OpenAI's batch format.

    A line of IN.jsonl is {"custom_id": "a", "url": "/v1/chat/completions", "method": "POST", "body": {...}}.
    Interrupted and started again, it goes on where it stopped. A request that fails gets a line that says why.
    """
    from mistral_portable.openai.batch import check_files, run_batch

    check_files(requests, answers)  # before a large model is loaded
    with (
        load_model(
            model,
            backend=backend,
            dtype=dtype,
            quantize=quantize,
            kv_cache=kv_cache,
            device=device,
            attention=attention,
            tensor_parallel=None,
            window=window,
            max_context=max_context,
            cache_ram=cache_ram,
            threads=threads,
            revision=revision,
            max_lanes=parallel,
        ) as loaded,
        reading(f"{loaded.backend} on {model}") as progress,
    ):
        result = run_batch(loaded, requests, answers, progress=progress)
    before = f", {result.before} were there before" if result.before else ""
    typer.echo(f"{result.answered} answered, {result.failed} failed{before}: {answers}", err=True)
