"""`run`: continue a text, or answer one message."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Annotated, Any

import typer

from mistral_portable.cli import stdin
from mistral_portable.cli.loading import load_model
from mistral_portable.cli.options import DebugOption, ModelOptions, SamplingOptions
from mistral_portable.cli.output import aside, end_line, show, speed
from mistral_portable.engine import Generation
from mistral_portable.errors import InputError

__all__ = ["run"]


def run(
    model: ModelOptions,
    sampling: SamplingOptions,
    prompt: Annotated[str | None, typer.Argument(help="If absent, standard input is read.", show_default=False)] = None,
    chat: Annotated[bool, typer.Option("--chat/--raw", help="Answer a message, or continue a text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead.")] = False,
    logprobs: Annotated[
        int | None, typer.Option(min=0, help="With --json: log-probabilities, also of the N likeliest.", metavar="N")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Generate text and show it as it comes.

    With --raw the prompt is printed too, so that the text reads whole; with --chat only the answer is.
    """
    if logprobs is not None and not as_json:
        raise typer.BadParameter("only --json shows them", param_hint="'--logprobs'")
    text = stdin.read_text() if prompt is None else prompt
    if text is None:
        raise typer.BadParameter("give a text, or pipe one in", param_hint="'PROMPT'")
    if not text:
        raise InputError("the prompt is empty: give some text")
    if model.tensor_parallel is not None and sampling.temperature > 0 and sampling.seed is None:
        raise typer.BadParameter("all processes must draw alike: give --seed, too", param_hint="'--tensor-parallel'")
    params = dataclasses.replace(sampling.params(), logprobs=logprobs)
    messages = [{"role": "user", "content": text}]
    interrupted = False
    with (
        _one_answer(model.tensor_parallel),
        load_model(model) as loaded,
        loaded.stream(messages if chat else text, params) as streamer,
    ):
        try:
            if not chat and not as_json:
                show(text)
            for piece in streamer:
                if not as_json:
                    show(piece)
        except KeyboardInterrupt:
            interrupted = True
        generation = streamer.generation
        if as_json:
            report = _report(generation) | {"model": loaded.source, "backend": loaded.backend}
            show(json.dumps(report | {"finish_reason": "abort"} if interrupted else report) + "\n")
        else:
            end_line(generation.text or text)
        aside(speed(generation.timings))
    if interrupted:
        raise typer.Exit(130)


@contextmanager
def _one_answer(processes: int | None) -> Iterator[None]:
    """Of several processes that give the same answer only the first one writes it."""
    if processes is None or os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _report(generation: Generation) -> dict[str, Any]:
    logprobs = generation.logprobs and [
        {
            "token": sampled.token,
            "logprob": sampled.logprob,
            "top_logprobs": [top._asdict() for top in sampled.top_logprobs],
        }
        for sampled in generation.logprobs
    ]
    return dataclasses.asdict(generation) | {"logprobs": logprobs}
