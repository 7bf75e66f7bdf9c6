"""`run`: continue a text, or answer one message."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Annotated, Any

import typer

from mistral_portable.cli import stdin
from mistral_portable.cli.answer import end_answer, show_answer
from mistral_portable.cli.debug import DebugOption
from mistral_portable.cli.groups import grouped
from mistral_portable.cli.loading import load_model
from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import (
    ModelOption,
    ReasoningEffortOption,
    SessionOption,
    TensorParallelOption,
)
from mistral_portable.cli.output import aside, show, speed
from mistral_portable.cli.rule import GrammarOption, JsonSchemaOption, RegexOption, Rule
from mistral_portable.cli.sampling_options import SamplingOptions
from mistral_portable.cli.session import resume
from mistral_portable.engine import Generation
from mistral_portable.errors import InputError
from mistral_portable.sampling.params import MINIMA

__all__ = ["run"]


@grouped
def run(
    *,
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="If absent, standard input is read.", show_default=False)] = None,
    chat: Annotated[bool, typer.Option("--chat/--raw", help="Answer a message, or continue a text.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end instead.")] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(
            min=MINIMA["logprobs"],
            help="With --json: log-probabilities, also of the N most probable tokens.",
            metavar="N",
        ),
    ] = None,
    model: ModelOption = "tiny",
    options: ModelOptions,
    tensor_parallel: TensorParallelOption = None,
    session: SessionOption = None,
    sampling: SamplingOptions,
    reasoning_effort: ReasoningEffortOption = None,
    json_schema: JsonSchemaOption = None,
    grammar: GrammarOption = None,
    regex: RegexOption = None,
    debug: DebugOption = False,
) -> None:
    """Generate text and show it as it comes.

    With --raw the prompt is printed too, so that the text reads whole; with --chat only the answer is.
    """
    if logprobs is not None and not as_json:
        raise typer.BadParameter("only --json shows them", param_hint="'--logprobs'")
    rule = Rule(json_schema, grammar, regex, prompt_is_piped=prompt is None)
    text = stdin.read_text() if prompt is None else prompt
    if text is None:
        raise typer.BadParameter("give a text, or pipe one in", param_hint="'PROMPT'")
    if not text:
        raise InputError("the prompt is empty: give some text")
    if tensor_parallel is not None and sampling.temperature > 0 and sampling.seed is None:
        raise typer.BadParameter("all processes must draw alike: give --seed, too", param_hint="'--tensor-parallel'")
    if tensor_parallel is not None and session is not None:
        raise typer.BadParameter("several processes cannot share a session", param_hint="'--session'")
    sampling.params(logprobs)  # whatever the model, they must be right
    messages = [{"role": "user", "content": text}]
    interrupted = False
    with (
        _one_answer(tensor_parallel),
        load_model(model, options, tensor_parallel=tensor_parallel) as loaded,
    ):
        resume(loaded, session)
        params = sampling.params_of(loaded, context, logprobs)
        params = dataclasses.replace(params, grammar=rule.compile(loaded))
        with loaded.stream(messages if chat else text, params, reasoning_effort=reasoning_effort) as streamer:
            try:
                if not chat and not as_json:
                    show(text)
                if as_json:
                    for _ in streamer.deltas():
                        pass
                else:
                    show_answer(streamer)
            except KeyboardInterrupt:
                interrupted = True
        generation = streamer.generation
        if as_json:
            report = _report(generation) | {"model": loaded.source, "backend": loaded.backend}
            show(json.dumps(report | {"finish_reason": "abort"} if interrupted else report) + "\n")
        else:
            end_answer(generation.text if chat else text + generation.text, generation)
        aside(speed(generation.timings))
        if session is not None and generation.tokens:
            loaded.save_session(session)
    if interrupted:
        raise typer.Exit(130)


@contextmanager
def _one_answer(processes: int | None) -> Iterator[None]:
    """Let only the first of several processes that compute the same answer write it."""
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
