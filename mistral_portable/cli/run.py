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
from mistral_portable.cli.loading import load_model
from mistral_portable.cli.options import (
    AttentionOption,
    BackendOption,
    DebugOption,
    DeviceOption,
    DtypeOption,
    FrequencyPenaltyOption,
    IgnoreEosOption,
    KVCacheOption,
    MaxContextOption,
    MaxTokensOption,
    MinPOption,
    ModelOption,
    PresencePenaltyOption,
    QuantizeOption,
    RepetitionPenaltyOption,
    RevisionOption,
    SeedOption,
    SessionOption,
    StopOption,
    TemperatureOption,
    TensorParallelOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    TypicalPOption,
    WindowOption,
)
from mistral_portable.cli.output import aside, show, speed
from mistral_portable.cli.session import resume
from mistral_portable.engine import Generation
from mistral_portable.errors import InputError
from mistral_portable.sampling import SamplingParams
from mistral_portable.sampling.params import MINIMA

__all__ = ["run"]


def run(
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
    backend: BackendOption = "auto",
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    kv_cache: KVCacheOption = None,
    device: DeviceOption = None,
    attention: AttentionOption = None,
    tensor_parallel: TensorParallelOption = None,
    window: WindowOption = "config",
    max_context: MaxContextOption = None,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    session: SessionOption = None,
    max_tokens: MaxTokensOption = SamplingParams.max_tokens,
    temperature: TemperatureOption = SamplingParams.temperature,
    top_k: TopKOption = SamplingParams.top_k,
    top_p: TopPOption = SamplingParams.top_p,
    min_p: MinPOption = SamplingParams.min_p,
    typical_p: TypicalPOption = SamplingParams.typical_p,
    repetition_penalty: RepetitionPenaltyOption = SamplingParams.repetition_penalty,
    frequency_penalty: FrequencyPenaltyOption = SamplingParams.frequency_penalty,
    presence_penalty: PresencePenaltyOption = SamplingParams.presence_penalty,
    seed: SeedOption = SamplingParams.seed,
    stop: StopOption = None,
    ignore_eos: IgnoreEosOption = SamplingParams.ignore_eos,
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
    if tensor_parallel is not None and temperature > 0 and seed is None:
        raise typer.BadParameter("all processes must draw alike: give --seed, too", param_hint="'--tensor-parallel'")
    if tensor_parallel is not None and session is not None:
        raise typer.BadParameter("several processes cannot share a session", param_hint="'--session'")
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
        logprobs=logprobs,
    )
    messages = [{"role": "user", "content": text}]
    interrupted = False
    with (
        _one_answer(tensor_parallel),
        load_model(
            model,
            backend=backend,
            dtype=dtype,
            quantize=quantize,
            kv_cache=kv_cache,
            device=device,
            attention=attention,
            tensor_parallel=tensor_parallel,
            window=window,
            max_context=max_context,
            threads=threads,
            revision=revision,
        ) as loaded,
    ):
        resume(loaded, session)
        with loaded.stream(messages if chat else text, params) as streamer:
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
